"""`finetune`: from which step on does a training return its own pictures?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import AsJson, Engine, Workers, app, check_folder
from cryptomnesia.cli.options import path_or_url, settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_course, progress_bar
from cryptomnesia.settings import FinetuneSettings


@app.command()
@settings_flags(arguments=["checkpoints"], needed=["checkpoints", "base", "data"])
def finetune(
    settings: FinetuneSettings,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=path_or_url,
            help="Folder of the run, or a URL such as s3://bucket/course, with finetune.json and the page index.html. "
            "If it holds a run on the same base and pictures, that one goes on, also with new checkpoints.",
        ),
    ] = Path("course"),
    watch: Annotated[
        bool, typer.Option(help="Follow a training that is still running: measure every checkpoint as it is written.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the folder with --watch.")] = 30.0,
    workers: Workers = None,
    engine: Engine = "local",
    as_json: AsJson = False,
) -> None:
    """Say from which step on a training returns its own pictures, and which checkpoint to keep.

    Exit code 0: no checkpoint copies a picture. 1: one does.
    """
    from cryptomnesia.finetuning import verb

    check_folder(output)
    if settings.caption is not None and settings.captions is not None:
        raise UsageError("got --caption and --captions; give one caption for all pictures, or a file with one for each")
    given = {"checkpoints", "base", "data", "captions", "caption", "held_out", "held_out_captions", "other_captions"}
    values = settings.model_dump(exclude=given)
    with progress_bar() as report:
        course = verb.finetune(
            str(settings.checkpoints),
            settings.base,
            settings.data,
            settings.captions or settings.caption,
            held_out=settings.held_out or None,
            held_out_captions=settings.held_out_captions,
            other_captions=settings.other_captions or (),
            output=output,
            watch=every if watch else None,
            workers=workers,
            engine=engine,
            progress=report,
            **values,
        )
    if as_json:
        typer.echo(json.dumps(course.to_json(), indent=2))
    else:
        print_course(course)
        typer.echo(f"{output / 'index.html'}: the curve, and every copy beside its picture")
    raise typer.Exit(course.exit_code)
