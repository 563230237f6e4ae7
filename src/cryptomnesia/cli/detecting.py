"""`detect` and `demo`: which generated images are memorized."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.bundled import truth_of
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
from cryptomnesia.cli.maps import compared, named_localizers
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_verdicts, progress_bar
from cryptomnesia.report.rows import Judged, verdicts_to_json
from cryptomnesia.report.words import print_words
from cryptomnesia.settings import DemoSettings, DetectSettings

if TYPE_CHECKING:
    from cryptomnesia.cli.bundled import Truth
    from cryptomnesia.detection import Finding

_DEMO = "bundled:drawings"
"""The model of `demo`, whose pictures people recognise."""

FINDINGS = "findings.json"
"""The file in the output folder that holds what `--json` prints."""


@app.command()
@settings_flags(arguments=["model"], needed=["model"])
def detect(
    settings: DetectSettings,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for a picture of every flagged image, and findings.json. With --localize or --mitigate the "
            "picture, its map and the picture under mitigation are side by side.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate images of prompts and flag those that look memorized.

    Exit code 0: nothing is flagged. 1: an image is flagged. 3: nothing is flagged, but some images could not be judged.
    """
    captions = captions_of(settings)
    if settings.localize and output is None:
        raise UsageError("got --localize without a folder for the maps; give -o FOLDER, or leave --localize out")
    for name, used, flag in (
        ("localizer", settings.localize, "--localize"),
        ("mitigation", settings.mitigate, "--mitigate"),
    ):
        if getattr(settings, name) != "auto" and not used:
            typer.echo(f"--{name} {getattr(settings, name)} is not used without {flag}", err=True)
    rows = _examined(settings, captions, output, as_json=as_json)
    raise typer.Exit(exit_code(row.verdict for row in rows))


@app.command()
@settings_flags()
def demo(
    settings: DemoSettings,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures and findings.json.")] = Path(
        "demo-output"
    ),
) -> None:
    """Detect, map and mitigate on a bundled model of emoji, with prompts that it has memorized and ordinary ones."""
    from cryptomnesia.pipelines.loading import bundle_of
    from cryptomnesia.proving_ground.concepts import PLANTED
    from cryptomnesia.proving_ground.manifest import Manifest

    bundle = bundle_of(_DEMO)
    assert bundle is not None
    manifest = Manifest.load(bundle)
    top = [entry for entry in manifest.counted if entry.exposures == manifest.top]
    # of every kind and wording the caption that is reproduced most often, the first of equals; the picture of a caption
    # with many pictures may be any of them
    planted = [
        max((entry for entry in top if (entry.kind, entry.wording) == (kind, wording)), key=lambda e: e.replicated or 0)
        for kind in PLANTED
        for wording in ("named", "plain")
    ]
    negatives = [entry for entry in manifest.entries if entry.kind == "rare_name"][:2]
    ordinary = manifest.control_captions("selection", 8)
    captions = [entry.captions[0] for entry in (*planted, *negatives)] + ordinary
    _examined(DetectSettings(model=_DEMO, **settings.model_dump()), captions, output)


def _examined(
    settings: DetectSettings, captions: Sequence[str], output: Path | None, *, as_json: bool = False
) -> list[Judged]:
    """Detect, print, and write pictures of flagged images to `output`, where those of an earlier run are removed."""
    from cryptomnesia import detection
    from cryptomnesia.files import write_whole
    from cryptomnesia.pipelines.setup import Setup

    model, call = str(settings.model), call_of(settings)
    localizer = settings.localizer if settings.localize else None
    mitigation = settings.mitigation if settings.mitigate else None
    calibration = calibration_of(settings, model)
    check_names("detector", [settings.detector])
    check_names("localizer", [] if localizer is None else [localizer])
    if localizer is not None and any("checkpoint" in method.requires for method in named_localizers([localizer])):
        raise UsageError(
            f"{localizer} is compared with a less-trained checkpoint, which only localize takes; use `cryptomnesia "
            "localize` with --checkpoint, or another --localizer"
        )
    check_names("mitigation", [] if mitigation is None else [mitigation])
    chosen = compared(settings)
    if output is not None:
        check_folder(output)
    pipe = pipeline_of(settings)
    truth = truth_of(model, pipe)
    seeds = seeds_of(settings, captions)
    rows: list[Judged] = []
    with progress_bar() as report:
        found = detection.detect(
            pipe,
            captions,
            seeds=seeds,
            images_per_prompt=settings.images_per_prompt,
            long=settings.long,
            calibration=calibration,
            detector=chosen,
            fpr=settings.fpr,
            localizer=localizer,
            mitigation=mitigation,
            words=settings.words,
            batch_size=settings.batch_size,
            progress=lambda done: report("images", done, len(seeds)),
            **call,
        )
        if output is not None:
            make_folder(output)
        report("images", 0, len(seeds))
        for finding in found:
            if output is not None and not rows:
                # an earlier run's files stay until there are new ones
                remove_old(output, "image", "panel")
                (output / FINDINGS).unlink(missing_ok=True)
            file = None
            if output is not None and finding.verdict.flagged:
                file = _written(output, len(rows), finding, truth, closer=settings.localize or settings.mitigate)
            # a long run keeps no pictures in memory
            rows.append(Judged(finding.seed, finding.verdict, file, finding.truncated, finding.words))
    result = verdicts_to_json(rows, model, Setup.of(pipe, call), detector=rows[0].verdict.detector, fpr=settings.fpr)
    text = json.dumps(result, indent=2)
    if output is not None:
        write_whole(output / FINDINGS, f"{text}\n")
    if as_json:
        typer.echo(text)
    else:
        print_verdicts(rows)
        print_words(rows)
        if output is not None:
            written = counted(sum(row.file is not None for row in rows), "picture")
            typer.echo(f"{written} and {FINDINGS} in {output}")
    return rows


def _written(folder: Path, number: int, finding: "Finding", truth: "Truth", *, closer: bool) -> Path:
    """The file of a flagged image: a panel if maps or other pictures were asked for, else the picture."""
    from cryptomnesia.files import write_whole
    from cryptomnesia.images import pixels, png
    from cryptomnesia.report.panel import write_panel

    path = image_file(folder, "panel" if closer else "image", number, finding.seed)
    if closer:
        write_panel(path, finding, truth(finding.prompt, pixels(finding.image)))
    else:
        write_whole(path, png(finding.image))
    return path
