"""`canaries`: marked pictures in a training set show how many repetitions the training tolerates."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import AsJson, app, check_folder, counted
from cryptomnesia.cli.options import path, path_or_url, settings_flags
from cryptomnesia.report.console import print_exposures, progress_bar
from cryptomnesia.settings import MakeCanariesSettings, MeasureCanariesSettings

canaries = typer.Typer(
    help="Add marked pictures to a training set, and measure how well the trained model knows them.",
    no_args_is_help=True,
)
app.add_typer(canaries, name="canaries")


@canaries.command()
@settings_flags(arguments=["data"], needed=["data"])
def make(
    settings: MakeCanariesSettings,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=path,
            help="Folder that gets the canaries and canaries.json; the training set itself unless given. If it holds "
            "canaries that were not finished, this call goes on.",
        ),
    ] = None,
) -> None:
    """Add canaries to a training set: pictures with invented names, each at a known number of repetitions.

    The file canaries.json says which files were added. It is needed to measure them, and is a secret until then.
    """
    from cryptomnesia.finetuning.canaries.manifest import FILE
    from cryptomnesia.finetuning.canaries.planting import make_canaries

    assert settings.data is not None
    folder = output or settings.data
    check_folder(folder)
    with progress_bar() as report:
        made = make_canaries(output=output, progress=report, **settings.model_dump())
    files = counted(sum(1 for file in made.files if file.endswith(".png")), "picture file")
    typer.echo(f"{folder}: {len(made.canaries)} canaries in {files}")
    typer.echo(f"{made.share:.0%} of the pictures of an epoch ({made.shown} of {made.shown + made.pictures})")
    typer.echo(f"{folder / FILE}: keep it, and measure with `cryptomnesia canaries measure MODEL {folder / FILE}`")


@canaries.command()
@settings_flags(arguments=["model", "manifest"], needed=["model", "manifest"])
def measure(
    settings: MeasureCanariesSettings,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=path_or_url,
            help="Folder for exposure.json, and for the curve over the repetitions as exposure.svg.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say from how many repetitions on a trained model knows canaries better than pictures that it was never shown.

    Exit code 0: no repetitions stand out. 1: some do. 3: none does, but those of some could not be measured.
    """
    from cryptomnesia.finetuning.canaries.asking import measure_canaries

    if output is not None:
        check_folder(output)
    values = settings.model_dump()
    with progress_bar() as report:
        measured = measure_canaries(
            values.pop("model"), values.pop("manifest"), output=output, progress=report, **values
        )
    if as_json:
        typer.echo(json.dumps(measured.to_json(), indent=2))
    else:
        print_exposures(measured)
        if output is not None:
            typer.echo(f"{output / 'exposure.svg'}: the curve over the repetitions")
    raise typer.Exit(measured.exit_code)


@canaries.command()
def remove(
    folder: Annotated[Path, typer.Argument(parser=path, help="Folder that the canaries were added to.")],
) -> None:
    """Take the canaries of a folder out again. The file canaries.json stays, because `measure` needs it."""
    from cryptomnesia.finetuning.canaries.planting import remove_canaries

    made = remove_canaries(folder)
    typer.echo(f"{folder}: took out {len(made.canaries)} canaries")
