"""`index`: make training images searchable."""

from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import app, print_skipped
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.report.console import progress_bar
from cryptomnesia.settings import BuildSettings

index = typer.Typer(help="Make training images searchable.", no_args_is_help=True)
app.add_typer(index, name="index")


@index.command()
@settings_flags(arguments=["images"], needed=["images"])
def build(
    settings: BuildSettings,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the index; a build that was stopped goes on.")
    ],
) -> None:
    """Describe every picture of a folder, so that match and audit can name the one that a generation reproduces."""
    from cryptomnesia.matching import SSCD, ImageIndex, Tiles

    descriptor = Tiles() if settings.sscd is None else SSCD(settings.sscd)
    with progress_bar() as report:
        built = ImageIndex.build(
            Path(str(settings.images)),
            output,
            descriptor,
            faiss=settings.faiss,
            workers=settings.workers,
            progress=lambda done, total: report("pictures", done, total),
        )
    typer.echo(f"{output}: {len(built)} pictures by {descriptor.name}")
    print_skipped(dict(sorted(built.skipped.items())), len(built.skipped), output)
