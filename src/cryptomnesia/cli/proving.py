"""`proving-ground`: train, measure and look at models whose training images are known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import app, check_folder, check_writable, make_folder
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import progress_bar

if TYPE_CHECKING:
    from cryptomnesia.proving_ground.ground import Ground
    from cryptomnesia.proving_ground.recipe import Recipe

proving = typer.Typer(help="Train, measure and look at models whose training images are known.", no_args_is_help=True)
app.add_typer(proving, name="proving-ground")

Name = Annotated[str, typer.Argument(metavar="GROUND", help="Name of a proving ground; `list` shows all.")]
Bundle = Annotated[
    Path | None, typer.Option(help="RUN/bundle of a training in RUN. By default the model that comes with the package.")
]

Pictures = Annotated[int | None, typer.Option(min=1, help="Of a fine-tune: number of pictures.")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Other than the ground's own: other pictures, and other random numbers.")
]
Exposures = Annotated[int | None, typer.Option(min=1, max=100_000, help="Of a fine-tune: exposures of every picture.")]


@proving.command("list")
def grounds() -> None:
    """List the proving grounds."""
    from cryptomnesia.pipelines.loading import quiet

    with quiet():
        from cryptomnesia.proving_ground.ground import grounds

    width = max(map(len, grounds()))
    for ground in grounds().values():
        bundled = "" if ground.bundle.exists() else "; its model does not come with the package, `train` makes it"
        typer.echo(f"{ground.name:{width}}  {ground.summary}{bundled}")


@proving.command()
def train(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="Folder of the run. If it holds a stopped run, this run goes on.")],
    device: Annotated[
        str | None, typer.Option(help="Device of the networks, such as cpu or cuda. By default a GPU if there is one.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="On a CPU: processes, one core each. The number divides all batch sizes.")
    ] = 2,
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            help="Trained autoencoder of the same pictures, such as RUN/autoencoder. By default one is trained."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="For a ground that goes on from another ground's model: the bundle of that model (RUN/bundle). By "
            "default the one that comes with the package."
        ),
    ] = None,
    pictures: Pictures = None,
    exposures: Exposures = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of a fine-tune by LoRA: its rank.")] = None,
    seed: Seed = None,
) -> None:
    """Train the model of a proving ground, from nothing (hours on two cores) or from another's (minutes)."""
    from cryptomnesia.pipelines.loading import quiet

    with quiet():
        from cryptomnesia.proving_ground.bundle import bundle
        from cryptomnesia.proving_ground.fine_tune import tuned
        from cryptomnesia.proving_ground.ground import ground_of
        from cryptomnesia.proving_ground.train import train

    check_folder(folder)
    ground = tuned(ground_of(name), base=base, pictures=pictures, exposures=exposures, rank=rank)
    recipe = _recipe(ground, seed)
    made = folder / "bundle"
    with progress_bar() as report:
        train(
            ground,
            folder,
            recipe,
            autoencoder=autoencoder,
            device=device,
            processes=processes,
            report=lambda phase, done, total, loss: report(f"{phase} (loss {loss:.4f})", done, total),
        )
        if not made.exists():
            bundle(ground, folder, made, recipe, progress=report)
    typer.echo(f"{made}: measure it with `cryptomnesia proving-ground verify {name} --bundle {made} --write`")


@proving.command()
def verify(
    name: Name,
    bundle: Bundle = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Less-trained pipeline of the same run, such as RUN/step-N: measure what that reproduces."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put the measured replication into the manifest.")] = False,
) -> None:
    """Generate thousands of images, and measure what a model memorized: up to two hours on one core."""
    from cryptomnesia.proving_ground.verify import flat, verify

    folder = _folder(name, bundle)
    with progress_bar() as report:
        figures = verify(folder, checkpoint=checkpoint, write=write, progress=report)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        for key, value in flat(figures):
            typer.echo(f"{key:48} {value}")


@proving.command()
def show(
    name: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")],
    bundle: Bundle = None,
) -> None:
    """Draw training image, mask and generations of planted concepts side by side."""
    check_writable(output)
    from PIL import Image

    from cryptomnesia.files import replacing
    from cryptomnesia.proving_ground.show import grid

    folder = _folder(name, bundle)
    with progress_bar() as report:
        drawn = grid(folder, progress=report)
    make_folder(output.parent)
    with replacing(output) as unfinished:
        # a palette makes the file a fifth as large
        drawn.quantize(256, dither=Image.Dither.NONE).save(unfinished, format="PNG", optimize=True)
    typer.echo(str(output))


@proving.command()
def images(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="Folder of the pictures; it is made if it does not exist.")],
    others: Annotated[int, typer.Option(min=0, max=1_000_000, help="Pictures besides the planted ones.")] = 1000,
    pictures: Pictures = None,
    exposures: Exposures = None,
    seed: Seed = None,
) -> None:
    """Write training images of a proving ground, planted ones and others, to compare generations with."""
    from cryptomnesia.pipelines.loading import quiet

    with quiet():
        from cryptomnesia.proving_ground.fine_tune import tuned
        from cryptomnesia.proving_ground.ground import ground_of
        from cryptomnesia.proving_ground.images import write_training_images
    ground = tuned(ground_of(name), pictures=pictures, exposures=exposures)
    make_folder(folder)
    with progress_bar() as report:
        write_training_images(
            ground, folder, others, recipe=_recipe(ground, seed), progress=lambda done: report("pictures", done, others)
        )
    typer.echo(str(folder))


def _recipe(ground: "Ground", seed: int | None) -> "Recipe":
    """The recipe of a ground with another seed, if one is given."""
    return ground.recipe if seed is None else replace(ground.recipe, seed=seed)


def _folder(name: str, bundle: Path | None) -> Path:
    """The folder of a ground's model, by default of the one that comes with the package.

    Raises:
        UsageError: if there is no such ground, none of its models there, or a model of another ground.
    """
    from cryptomnesia.proving_ground.ground import ground_of
    from cryptomnesia.proving_ground.manifest import Manifest

    ground = ground_of(name)
    if bundle is None and not ground.bundle.exists():
        raise UsageError(
            f"the model of {name} does not come with the package; make it with `cryptomnesia proving-ground train "
            f"{name} FOLDER`, then give --bundle FOLDER/bundle"
        )
    folder = bundle or ground.bundle
    if (found := Manifest.load(folder).ground) != name:
        raise UsageError(f"{folder} is a model of {found}; give one of {name}, or name the ground {found}")
    return folder
