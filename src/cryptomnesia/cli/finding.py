"""`find`: does a model hold given pictures?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import AsJson, Engine, Workers, app, check_folder
from cryptomnesia.cli.options import path_or_url, settings_flags
from cryptomnesia.report.console import print_found, progress_bar
from cryptomnesia.settings import FindSettings


@app.command()
@settings_flags(arguments=["model", "images"], needed=["model", "images"])
def find(
    settings: FindSettings,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=path_or_url,
            help="Folder of the search, or a URL such as s3://bucket/found, with found.json and an HTML page of every "
            "picture. If it holds a stopped search, that one goes on.",
        ),
    ] = Path("found"),
    workers: Workers = None,
    engine: Engine = "local",
    as_json: AsJson = False,
) -> None:
    """Say of given pictures whether a model holds them, compared with pictures that it was not trained on.

    Exit code 0: none is evidenced. 1: one is retained, or reproducible. 3: nothing could be decided, of one at least.
    """
    from cryptomnesia.finding import verb

    check_folder(output)
    values = settings.model_dump(exclude={"model", "images", "captions", "controls", "control_captions"})
    with progress_bar() as report:
        found = verb.find(
            settings.model,
            settings.images,
            settings.captions,
            settings.controls or None,
            control_captions=settings.control_captions,
            output=output,
            workers=workers,
            engine=engine,
            progress=report,
            **values,
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_found(found)
        typer.echo(f"{output / 'index.html'}: a page for every picture")
    raise typer.Exit(found.exit_code)
