"""`calibrate`: what is usual for a setup."""

from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import (
    BatchSize,
    Dtype,
    FirstSeed,
    Guidance,
    Height,
    Model,
    NegativePrompt,
    References,
    Scheduler,
    Steps,
    Width,
    app,
    check_writable,
    make_folder,
    sampling,
)
from cryptomnesia.report.console import progress_bar


@app.command()
def calibrate(
    model: Model,
    prompts: References,
    output: Annotated[Path, typer.Option("-o", "--output", help="The calibration file to write.")],
    seed: FirstSeed = 1_000_000,
    steps: Steps = 50,
    guidance: Guidance = None,
    height: Height = None,
    width: Width = None,
    negative_prompt: NegativePrompt = None,
    scheduler: Scheduler = "ddim",
    dtype: Dtype = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            help="A map whose mean is to be a detector, too: collapse, curvature-difference, score-difference, "
            "guidance-map, curvature. May be given more than once; all other detectors always are calibrated."
        ),
    ] = None,
    batch_size: BatchSize = 8,
) -> None:
    """Learn from reference prompts what is usual, one image each, and save it for `detect`."""
    from cryptomnesia.calibration.scores import Calibration
    from cryptomnesia.pipelines.loading import load_pipeline
    from cryptomnesia.prompts import read_prompts

    captions = read_prompts(prompts)
    check_writable(output)
    pipe = load_pipeline(model, scheduler=scheduler, dtype=dtype)
    with progress_bar() as report:
        fitted = Calibration.fit(
            pipe,
            captions,
            sampling(model, steps, guidance, height, width, negative_prompt),
            detectors=detector or (),
            seed=seed,
            batch_size=batch_size,
            progress=lambda done: report("reference images", done, len(captions)),
        )
    make_folder(output.parent)
    fitted.save(output)
    share = 100 * fitted.lowest_rate
    typer.echo(f"{output}: {len(captions)} references; false-positive rates from {share:.2f}% up")
    if share > 1:
        typer.echo("detect asks for 1% unless told otherwise with --rate; 150 references support it", err=True)
