"""`detect` and `demo`: which pictures are memorized."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import (
    AsJson,
    BatchSize,
    Dtype,
    Guidance,
    Height,
    ImagesPerPrompt,
    Model,
    NegativePrompt,
    Prompt,
    Prompts,
    Scheduler,
    Seed,
    Steps,
    Width,
    app,
    image_file,
    make_folder,
    remove_old,
    sampling,
    wanted_images,
)
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_table, progress_bar
from cryptomnesia.report.rows import Row, to_json

if TYPE_CHECKING:
    from cryptomnesia.guarding.making import Verdict
    from cryptomnesia.settings import Sampling


@app.command()
def detect(
    model: Model,
    prompt: Prompt = None,
    prompts: Prompts = None,
    images_per_prompt: ImagesPerPrompt = 1,
    seed: Seed = 0,
    steps: Steps = 50,
    guidance: Guidance = None,
    height: Height = None,
    width: Width = None,
    negative_prompt: NegativePrompt = None,
    scheduler: Scheduler = "ddim",
    dtype: Dtype = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Made by `calibrate` with the same steps, guidance and scheduler; the bundled model brings its own."
        ),
    ] = None,
    detector: Annotated[
        str,
        typer.Option(
            help="drift, stability, guidance-first, guidance-mean, guidance-last, or the mean of a map: collapse, "
            "curvature-difference, score-difference, guidance-map, curvature."
        ),
    ] = "drift",
    rate: Annotated[float, typer.Option(help="False-positive rate at which an image is flagged.")] = 0.01,
    batch_size: BatchSize = 8,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for a panel PNG of every flagged image.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate prompts and say which images are memorized; with -o also where, and what instead."""
    from cryptomnesia.pipelines.loading import BUNDLED, check_exists

    captions, seeds = wanted_images(prompt, prompts, images_per_prompt, seed)
    check_exists(model)
    if calibration is None and model != BUNDLED:
        raise UsageError(
            f"detecting in {model} needs a calibration; make one with "
            f"`cryptomnesia calibrate {model} --prompts FILE -o calibration.safetensors` and give it as --calibration"
        )
    rows = _examine(
        model,
        captions,
        seeds,
        sampling(model, steps, guidance, height, width, negative_prompt),
        scheduler=scheduler,
        dtype=dtype,
        calibration=calibration,
        detector=detector,
        rate=rate,
        batch_size=batch_size,
        output=output,
        as_json=as_json,
    )
    verdicts = {row.verdict for row in rows}
    raise typer.Exit(1 if "memorized?" in verdicts else 3 if "could not tell" in verdicts else 0)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")] = Path("demo-output"),
) -> None:
    """Run the main job on the bundled model: planted captions among ordinary ones."""
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.bundle import control_captions
    from cryptomnesia.proving_ground.manifest import Manifest
    from cryptomnesia.proving_ground.planted import plant

    manifest = Manifest.load(BUNDLE)
    top = max(entry.exposures for entry in manifest.entries)
    planted = [
        [entry for entry in manifest.entries if entry.kind == kind and entry.exposures == top][:4]
        for kind in ("verbatim", "template")
    ]
    negatives = [entry for entry in manifest.entries if entry.kind == "rare_name"][:2]
    ordinary = control_captions("selection", 6, plant(0))
    captions = [entry.captions[0] for entry in (*planted[0], *planted[1], *negatives)] + ordinary
    _examine("bundled", captions, [0] * len(captions), sampling("bundled", 50), output=output)


def _examine(
    model: str,
    prompts: list[str],
    seeds: list[int],
    settings: "Sampling",
    *,
    output: Path | None,
    scheduler: str = "ddim",
    dtype: str | None = None,
    calibration: Path | None = None,
    detector: str = "drift",
    rate: float = 0.01,
    batch_size: int = 8,
    as_json: bool = False,
) -> list[Row]:
    """Examine, print, and write panels to `output`, where those of an earlier run make room."""
    from cryptomnesia.calibration.scores import Calibration
    from cryptomnesia.detection import check, examine
    from cryptomnesia.localizers import Collapse
    from cryptomnesia.mitigations import default_rule
    from cryptomnesia.pipelines.families import family_of
    from cryptomnesia.pipelines.loading import BUNDLED, load_pipeline
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.manifest import Manifest
    from cryptomnesia.report.panel import write_panel
    from cryptomnesia.tracing.generation import check_prompts

    fitted = Calibration.load(calibration or BUNDLE / "calibration.safetensors")
    pipe = load_pipeline(model, scheduler=scheduler, dtype=dtype)
    manifest = Manifest.load(BUNDLE) if model == BUNDLED else None
    if manifest is not None:
        manifest.check(pipe)
    localizer = None if output is None else Collapse()
    rule = None if output is None else default_rule(conditional=family_of(pipe).conditional, batch=batch_size)
    check(pipe, settings, fitted, detector=detector, rate=rate, localizer=localizer, rule=rule)
    check_prompts(pipe, prompts)
    if output is not None:
        make_folder(output)
    rows: list[Row] = []
    with progress_bar() as report:
        report("images", 0, len(prompts))
        for finding in examine(
            pipe,
            prompts,
            seeds,
            settings,
            fitted,
            detector=detector,
            rate=rate,
            localizer=localizer,
            rule=rule,
            batch_size=batch_size,
            progress=lambda done: report("images", done, len(prompts)),
        ):
            panel = None
            if output is not None and not rows:
                # not before it is known that there will be new ones
                remove_old(output, "panel")
            if output is not None and finding.flagged:
                panel = image_file(output, "panel", len(rows), finding.seed).with_suffix(".png")
                write_panel(panel, finding, manifest)
            # the pictures are on disk; a long run keeps numbers only
            rows.append(
                Row(
                    finding.prompt,
                    finding.seed,
                    finding.score,
                    finding.p_value,
                    finding.crossed,
                    panel,
                    instead="" if finding.remedy is None else _instead(finding.remedy),
                )
            )
    if as_json:
        typer.echo(json.dumps(to_json(rows, model, scheduler, settings, detector, rate), indent=2))
    else:
        print_table(rows, detector, rate)
        if output is not None:
            panels = sum(row.panel is not None for row in rows)
            typer.echo(f"{panels} panels in {output}" if panels else f"nothing flagged, no panels in {output}")
    return rows


def _instead(remedy: "Verdict") -> str:
    """What was done about a flagged image, in a few words."""
    words = f"without {', '.join(remedy.dropped)}" if remedy.dropped else ""
    return f"withheld, also {words}" if remedy.action == "withheld" and words else words or remedy.action
