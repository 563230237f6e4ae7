"""`guard`: generate prompts behind a guard."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import (
    AsJson,
    app,
    calibration_of,
    call_of,
    captions_of,
    check_folder,
    check_names,
    counted,
    exit_code,
    image_file,
    make_folder,
    pipeline_of,
    remove_old,
    seeds_of,
)
from cryptomnesia.cli.maps import compared
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_verdicts, progress_bar
from cryptomnesia.report.rows import Judged, verdicts_to_json
from cryptomnesia.settings import GuardSettings, JudgeSettings

if TYPE_CHECKING:
    from cryptomnesia.calibration import Calibration


@app.command()
@settings_flags(arguments=["model"], needed=["model"])
def guard(
    settings: GuardSettings,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the images that the guard returns, as PNG files.")
    ] = Path("guarded"),
    as_json: AsJson = False,
) -> None:
    """Generate images of prompts behind a guard, and write the images that it returns.

    Exit code 0: nothing is flagged. 1: an image is flagged. 3: nothing is flagged, but some images could not be judged.
    """
    import torch

    from cryptomnesia.files import write_whole
    from cryptomnesia.guarding import guarded
    from cryptomnesia.images import png
    from cryptomnesia.pipelines.call import silent
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.tracing.generation import check_call, cut_off, images_of

    captions = captions_of(settings)
    calibrations = _calibrations_of(settings)
    check_names("detector", [settings.detector])
    check_names("mitigation", [settings.mitigation])
    check_folder(output)
    chosen = compared(settings)
    pipe = pipeline_of(settings)
    setup = Setup.of(pipe, call_of(settings))
    check_call(setup)
    prompts, seeds = images_of(setup, captions, seeds_of(settings, captions), settings.images_per_prompt, settings.long)
    truncated = cut_off(setup, prompts)
    guarding = guarded.guard(
        pipe,
        calibrations,
        policy=settings.policy,
        unknown=settings.unknown,
        detector=chosen,
        fpr=settings.fpr,
        mitigation=settings.mitigation,
        decide_by=settings.decide_by,
    )
    if settings.unknown == "raise":
        guarding.calibration_for(**call_of(settings))
    family = setup.family
    rows: list[Judged] = []
    with progress_bar() as report, silent(pipe), guarding:
        report("images", 0, len(seeds))
        for start in range(0, len(seeds), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            try:
                images = pipe(
                    **family.arguments(prompts[part], setup.sampling),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                    output_type="pt",
                ).images
            except UsageError:
                raise
            # diffusers refuses values of arguments by this
            except ValueError as error:
                raise UsageError(f"{type(pipe).__name__} refuses: {' '.join(str(error).split())}") from error
            if start == 0:
                # an earlier run's images stay until there are new ones
                make_folder(output)
                remove_old(output, "guarded")
            for seed, verdict, image in zip(seeds[part], guarding.verdicts, images, strict=True):
                file = image_file(output, "guarded", len(rows), seed)
                write_whole(file, png(image.float().nan_to_num()))
                rows.append(Judged(seed, verdict, file, verdict.prompt in truncated))
            report("images", len(rows), len(seeds))
    if as_json:
        result = verdicts_to_json(
            rows,
            str(settings.model),
            setup,
            policy=settings.policy,
            unknown=settings.unknown,
            mitigation=None if guarding.mitigation is None else guarding.mitigation.name,
            decide_by=settings.decide_by,
            detector=guarding.detector.name,
            fpr=settings.fpr,
        )
        typer.echo(json.dumps(result, indent=2))
    else:
        print_verdicts(rows)
        typer.echo(f"{counted(len(rows), 'image')} in {output}")
    raise typer.Exit(exit_code(row.verdict for row in rows))


def _calibrations_of(settings: GuardSettings) -> "list[Calibration]":
    """The calibrations that were given, or the one in the model's folder; loads no model."""
    from cryptomnesia.calibration.stored import Calibration
    from cryptomnesia.pipelines.loading import check_exists

    if not settings.calibration:
        return [calibration_of(JudgeSettings(fpr=settings.fpr), str(settings.model))]
    check_exists(str(settings.model))
    return [Calibration.load(path) for path in settings.calibration]
