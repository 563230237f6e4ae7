"""The command line: parse, call the library, set the exit code.

Exit codes: 0 done and nothing flagged, 1 something flagged, 2 usage error, 3 nothing flagged but some
images could not be scored. Results go to standard output, progress and errors to standard error.
Nothing heavy is imported before a command runs.
"""

import sys
from typing import Annotated

import typer

from cryptomnesia import __version__

# importing a module of commands registers them
from cryptomnesia.cli import auditing, calibrating, detecting, indexing, mapping, proving  # noqa: F401
from cryptomnesia.cli.common import app
from cryptomnesia.errors import CryptomnesiaError


def main() -> None:
    """Run the command line; a `CryptomnesiaError` becomes one line and exit code 2."""
    try:
        app()
    except CryptomnesiaError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
