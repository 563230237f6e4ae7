"""`proving-ground`: make, measure and look at the model whose truth is known."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import check_writable, ground, make_folder
from cryptomnesia.report.console import progress_bar


@ground.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Folder of the run; a stopped run in it goes on.")],
    processes: Annotated[int, typer.Option(min=1, help="Processes, one core each.")] = 2,
) -> None:
    """Train the bundled model from nothing (hours on two cores); may be stopped and started again."""
    from cryptomnesia.pipelines.loading import load_pipeline, quiet

    with quiet():
        from cryptomnesia.proving_ground.bundle import REFERENCES, bundle
        from cryptomnesia.proving_ground.train import Recipe, train

    recipe = Recipe()
    with progress_bar() as report:
        train(
            folder,
            recipe,
            processes=processes,
            report=lambda phase, done, total, loss: report(f"{phase} (loss {loss:.4f})", done, total),
        )
        if not (folder / "bundle").exists():
            bundle(
                load_pipeline(str(folder / "final"), scheduler="own", device="cpu"),
                load_pipeline(str(folder / "early"), scheduler="own", device="cpu"),
                folder / "bundle",
                seed=recipe.seed,
                progress=lambda done: report("calibration", done, REFERENCES),
            )
    made = folder / "bundle"
    typer.echo(f"{made}: measure it with `cryptomnesia proving-ground verify --bundle {made} --write`")


@ground.command()
def verify(
    bundle: Annotated[Path | None, typer.Option(help="A bundle; the one in the package by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    write: Annotated[bool, typer.Option(help="Put the measured replication into the manifest.")] = False,
) -> None:
    """Measure on generations what the bundled model memorized."""
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.verify import verify

    with progress_bar() as report:
        figures = verify(bundle or BUNDLE, write=write, progress=report)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            typer.echo(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")


@ground.command()
def show(
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")],
    bundle: Annotated[Path | None, typer.Option(help="A bundle; the one in the package by default.")] = None,
) -> None:
    """Draw training image, mask and generations of planted concepts as a picture grid."""
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.show import grid

    check_writable(output)
    with progress_bar() as report:
        drawn = grid(bundle or BUNDLE, progress=report)
    make_folder(output.parent)
    drawn.save(output, format="PNG")
    typer.echo(str(output))


@ground.command()
def images(
    folder: Annotated[Path, typer.Argument(help="Folder of the pictures; made if it is not there.")],
    others: Annotated[int, typer.Option(min=0, help="Pictures besides the planted ones.")] = 1000,
) -> None:
    """Write training images of the bundled model, planted ones and others, to match generations against."""
    from cryptomnesia.pipelines.loading import quiet

    with quiet():
        from cryptomnesia.proving_ground.images import write_training_images
    make_folder(folder)
    with progress_bar() as report:
        write_training_images(folder, others, progress=lambda done: report("pictures", done, others))
    typer.echo(str(folder))
