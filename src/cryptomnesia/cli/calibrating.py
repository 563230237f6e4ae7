"""`calibrate`: what is usual for a setup."""

from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import (
    BatchSize,
    Guidance,
    Model,
    Scheduler,
    Steps,
    app,
    check_writable,
    guidance_for,
    make_folder,
)
from cryptomnesia.report.console import progress_bar


@app.command()
def calibrate(
    model: Model,
    prompts: Annotated[
        Path,
        typer.Option(
            help="A file of captions that are not memorized, at least 100; 150 support a false-positive rate of 1%."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The calibration file to write.")],
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Seed of the first image.")] = 1_000_000,
    steps: Steps = 50,
    guidance: Guidance = None,
    scheduler: Scheduler = "ddim",
    batch_size: BatchSize = 8,
) -> None:
    """Learn from reference prompts what is usual, one image each, and save it for `detect`."""
    from cryptomnesia.calibrate import Calibration, check_references
    from cryptomnesia.models import load_pipeline
    from cryptomnesia.prompts import read_prompts
    from cryptomnesia.settings import Sampling

    captions = read_prompts(prompts)
    check_references(captions)
    check_writable(output)
    pipe = load_pipeline(model, scheduler=scheduler)
    sampling = Sampling(steps, guidance_for(model, guidance))
    with progress_bar() as report:
        fitted = Calibration.fit(
            pipe,
            captions,
            sampling,
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
