"""`index`: training images, made searchable."""

from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import app, print_skipped
from cryptomnesia.report.console import progress_bar

index = typer.Typer(help="Training images, to match generated pictures against.", no_args_is_help=True)
app.add_typer(index, name="index")


@index.command()
def build(
    images: Annotated[Path, typer.Argument(help="The folder of the training images, with all folders in it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the index; one that was stopped goes on.")],
    sscd: Annotated[
        Path | None,
        typer.Option(help="Compare by SSCD, its authors' TorchScript file or an ONNX one, instead of by tiles."),
    ] = None,
    faiss: Annotated[
        bool,
        typer.Option(
            "--faiss", help="Search among candidates: for more than ten million pictures. Needs the extra `faiss`."
        ),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode; one per core by default.")] = None,
) -> None:
    """Describe every picture of a folder, so that an audit can name the one that a generation reproduces."""
    from cryptomnesia.matching import SSCD, ImageIndex, Tiles

    descriptor = Tiles() if sscd is None else SSCD(sscd)
    with progress_bar() as report:
        made = ImageIndex.build(
            images,
            output,
            descriptor,
            faiss=faiss,
            workers=workers,
            progress=lambda done, total: report("pictures", done, total),
        )
    typer.echo(f"{output}: {len(made)} pictures by {descriptor.name}")
    print_skipped(dict(sorted(made.skipped.items())), len(made.skipped), output)
