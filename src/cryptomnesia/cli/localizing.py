"""`localize`: where generated images are memorized."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import (
    AsJson,
    app,
    call_of,
    captions_of,
    check_folder,
    counted,
    image_file,
    make_folder,
    pipeline_of,
    remove_old,
    seeds_of,
)
from cryptomnesia.cli.maps import checkpoint_of, localizers_for, named_localizers
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_regions, progress_bar
from cryptomnesia.report.rows import Region, regions, regions_to_json
from cryptomnesia.settings import LocalizeSettings

if TYPE_CHECKING:
    from cryptomnesia.calibration import Calibration
    from cryptomnesia.localization import Located
    from cryptomnesia.localizers import Localizer
    from cryptomnesia.pipelines.setup import Setup


REGIONS = "regions.json"
"""The file in the output folder that holds what `--json` prints."""


@app.command()
@settings_flags(arguments=["model"], needed=["model"])
def localize(
    settings: LocalizeSettings,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Folder for regions.json, and for a panel (.png) and the maps (.safetensors) of every image.",
        ),
    ] = Path("maps"),
    as_json: AsJson = False,
) -> None:
    """Generate images of prompts and map where each is memorized; with a calibration also as masks.

    Exit code 0: every image has its maps. 3: some maps could not be computed.
    """
    from cryptomnesia import localization
    from cryptomnesia.calibration import Calibration
    from cryptomnesia.files import write_whole
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.report.panel import write_maps
    from cryptomnesia.tracing.generation import cut_off

    captions = captions_of(settings)
    calibration = None if settings.calibration is None else Calibration.load(settings.calibration)
    names = settings.localizer or ["auto"]
    named_localizers(names)
    check_folder(output)
    pipe = pipeline_of(settings)
    setup = Setup.of(pipe, call_of(settings), checkpoint_of(settings, names))
    localizers = localizers_for(settings, names, setup)
    masked = _has_masks(settings, setup, localizers, calibration)
    seeds = seeds_of(settings, captions)
    truncated = cut_off(setup, captions)
    rows: list[Region] = []
    with progress_bar() as report:
        found = localization.localize(
            pipe,
            captions,
            seeds=seeds,
            images_per_prompt=settings.images_per_prompt,
            long=settings.long,
            localizers=localizers,
            checkpoint=setup.checkpoint,
            calibration=calibration,
            pixel_fpr=settings.pixel_fpr,
            smooth=settings.smooth,
            smallest=settings.smallest,
            batch_size=settings.batch_size,
            progress=lambda done: report("images", done, len(seeds)),
            **call_of(settings),
        )
        report("images", 0, len(seeds))
        for number, located in enumerate(found):
            if number == 0:
                # an earlier run's maps stay until there are new ones
                make_folder(output)
                remove_old(output, "maps")
                (output / REGIONS).unlink(missing_ok=True)
            panel, maps = (
                image_file(output, "maps", number, located.seed, suffix) for suffix in (".png", ".safetensors")
            )
            write_maps(panel, located)
            _save(maps, located)
            cut = located.prompt in truncated
            rows += [row._replace(truncated=cut) for row in regions(located, panel, maps)]
    pixel_fpr = settings.pixel_fpr if masked else None
    words = {method.name: method.describe() for method in localizers}
    text = json.dumps(regions_to_json(rows, str(settings.model), setup, words, pixel_fpr), indent=2)
    write_whole(output / REGIONS, f"{text}\n")
    if as_json:
        typer.echo(text)
    else:
        print_regions(rows, pixel_fpr)
        typer.echo(f"{counted(len(seeds), 'panel')} and as many files of maps in {output}")
    if missing := sum(row.mean is None for row in rows):
        typer.echo(f"{missing} of {counted(len(rows), 'map')} hold NaN: check the model's dtype and guidance", err=True)
        raise typer.Exit(3)


def _has_masks(
    settings: LocalizeSettings, setup: "Setup", localizers: "list[Localizer]", calibration: "Calibration | None"
) -> bool:
    """Whether maps become masks.

    Raises:
        UsageError: if the calibration that was given does not fit, or settings of masks were given without one.
    """
    from cryptomnesia.calibration.stored import calibration_of
    from cryptomnesia.localization import references_for

    if calibration is not None:
        return bool(references_for(setup, localizers, calibration))
    defaults = LocalizeSettings.model_fields
    given = [name for name in ("pixel_fpr", "smooth", "smallest") if getattr(settings, name) != defaults[name].default]
    beside = calibration_of(setup.pipe)
    if beside is not None:
        try:
            return bool(references_for(setup, localizers, beside))
        except UsageError:
            if given:
                raise
            # `localize` says in a warning why there are no masks
            return False
    if given:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        wanted = " ".join(f"--localizer {method.name}" for method in localizers)
        raise UsageError(
            f"got {flags} for masks, which need a calibration with these maps; make one with `cryptomnesia calibrate "
            f"{settings.model} {wanted} --prompts FILE -o calibration.safetensors`, and give it as --calibration"
        )
    return False


def _save(path: Path, located: "Located") -> None:
    """Write the maps, their standard errors and their masks to one file."""
    from safetensors.torch import save_file

    from cryptomnesia.files import replacing

    tensors = {name: heat.contiguous() for name, heat in located.maps.items()}
    tensors |= {f"{name}/error": error.contiguous() for name, error in located.errors.items()}
    tensors |= {f"{name}/mask": mask.pixels.contiguous() for name, mask in located.masks.items()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished)
