"""The command line: read settings, call the library, print the result, set the exit code.

Exit codes: 0 done and nothing flagged, 1 something flagged, 2 input that cannot be used, 3 nothing flagged but some
images could not be judged, 70 the program itself failed. Results go to standard output; progress, warnings and errors
go to standard error. Nothing heavy is imported before a command runs.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from cryptomnesia import __version__

# importing a module of commands registers them
from cryptomnesia.cli import (  # noqa: F401
    auditing,
    calibrating,
    detecting,
    guarding,
    indexing,
    listing,
    localizing,
    matching,
    proving,
)
from cryptomnesia.cli.common import app
from cryptomnesia.errors import CryptomnesiaError

VERBS = ("detect", "localize", "guard", "audit", "calibrate", "match")
"""The commands that the help shows first."""

_INTERRUPTED, _BROKEN_PIPE = 130, 141
"""Exit codes after Ctrl-C, and when nobody reads the output any more, as shells give them."""

_PROGRAM_ERROR = 70
"""Exit code after an exception that nobody expected, as sysexits.h has it; Python's own 1 means that something is
flagged."""

_CommandLineError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)
"""What Typer raises for a command line that it cannot parse."""


def main() -> None:
    """Run the command line and exit; an error that was raised on purpose becomes one line and exit code 2.

    After any other exception the traceback goes to standard error, and the exit code is 70.
    """
    with _warnings_as_lines():
        sys.exit(_run())


def _run() -> int:
    """Run the command line, and return the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except CryptomnesiaError as error:
        message = str(error)
    except BrokenPipeError:
        # what is left in the buffer cannot be written when Python ends either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        message = f"{error}; give another place, or make room"
    except _CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            # the help was printed
            return 2
        hint = getattr(getattr(error, "ctx", None), "command_path", "cryptomnesia")
        reason: str = getattr(error, "format_message", error.__str__)()
        message = f"{reason.rstrip('.')}; see {hint} --help"
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("error: interrupted", err=True)
        return _INTERRUPTED
    except Exception:
        traceback.print_exc()
        return _PROGRAM_ERROR
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return 2


class _OneLine(logging.Handler):
    """Writes every record of the library as one line to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record to standard error as one line."""
        typer.echo(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}", err=True)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show the library's warnings on standard error."""
    logger = logging.getLogger("cryptomnesia")
    handler = _OneLine(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _order_commands() -> None:
    """Show the verbs first and in their order in the help, and the other commands under another heading."""

    def name_of(command: typer.models.CommandInfo) -> str:
        return command.name or getattr(command.callback, "__name__", "")

    def place(command: typer.models.CommandInfo) -> tuple[int, str]:
        name = name_of(command)
        return (VERBS.index(name), "") if name in VERBS else (len(VERBS), name)

    app.registered_commands.sort(key=place)
    for command in app.registered_commands:
        command.rich_help_panel = "Main commands" if name_of(command) in VERBS else "Other commands"
    for group in app.registered_groups:
        group.rich_help_panel = "Other commands"


_order_commands()
