"""`proving-ground`: train, measure and look at the model whose training images are known."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import app, check_folder, check_writable, make_folder
from cryptomnesia.report.console import progress_bar

ground = typer.Typer(
    help="Train, measure and look at the bundled model, whose training images are known.", no_args_is_help=True
)
app.add_typer(ground, name="proving-ground")

Bundle = Annotated[Path | None, typer.Option(help="Folder that `train` made; the bundled model's unless given.")]


@ground.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Folder of the run; a run that was stopped goes on.")],
    processes: Annotated[int, typer.Option(min=1, help="Processes, one core for each.")] = 2,
) -> None:
    """Train the bundled model from nothing (hours on two cores); can be stopped and started again."""
    from cryptomnesia.pipelines.loading import load_pipeline, quiet

    with quiet():
        from cryptomnesia.proving_ground.bundle import REFERENCES, bundle
        from cryptomnesia.proving_ground.train import Recipe, train

    check_folder(folder)
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
                load_pipeline(str(folder / "final"), device="cpu"),
                load_pipeline(str(folder / "early"), device="cpu"),
                folder / "bundle",
                seed=recipe.seed,
                progress=lambda done: report("calibration", done, REFERENCES),
            )
    made = folder / "bundle"
    typer.echo(f"{made}: measure it with `cryptomnesia proving-ground verify --bundle {made} --write`")


@ground.command()
def verify(
    bundle: Bundle = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put the measured replication into the manifest.")] = False,
) -> None:
    """Generate images, and measure what the bundled model memorized."""
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
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")],
    bundle: Bundle = None,
) -> None:
    """Draw training image, mask and generations of planted concepts side by side."""
    check_writable(output)
    from cryptomnesia.files import replacing
    from cryptomnesia.proving_ground import BUNDLE
    from cryptomnesia.proving_ground.show import grid

    with progress_bar() as report:
        drawn = grid(bundle or BUNDLE, progress=report)
    make_folder(output.parent)
    with replacing(output) as unfinished:
        drawn.save(unfinished, format="PNG")
    typer.echo(str(output))


@ground.command()
def images(
    folder: Annotated[Path, typer.Argument(help="Folder of the pictures; it is made if it does not exist.")],
    others: Annotated[int, typer.Option(min=0, max=1_000_000, help="Pictures besides the planted ones.")] = 1000,
) -> None:
    """Write training images of the bundled model, planted ones and others, to compare generations with."""
    from cryptomnesia.pipelines.loading import quiet

    with quiet():
        from cryptomnesia.proving_ground.images import write_training_images
    make_folder(folder)
    with progress_bar() as report:
        write_training_images(folder, others, progress=lambda done: report("pictures", done, others))
    typer.echo(str(folder))
