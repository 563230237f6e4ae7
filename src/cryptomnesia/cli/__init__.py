"""The command line: read settings, call the library, print the result, set the exit code.

Exit codes: 0 done and nothing flagged, 1 something flagged, 2 input that cannot be used, 3 nothing flagged but some
images could not be judged, 4 the program itself failed. Results go to standard output; progress, warnings and errors
go to standard error, every error as one line. Nothing heavy is imported before a command runs.
"""

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cryptomnesia import __version__

# importing a module of commands registers them
from cryptomnesia.cli import (  # noqa: F401
    attacking,
    auditing,
    benching,
    calibrating,
    canaries,
    detecting,
    finding,
    finetuning,
    guarding,
    indexing,
    listing,
    localizing,
    matching,
    proving,
)
from cryptomnesia.cli.common import app
from cryptomnesia.cli.endings import BROKEN_PIPE, INTERRUPTED, UNUSABLE, ending_of
from cryptomnesia.cli.options import refuse_empty_paths
from cryptomnesia.cli.streams import discard, flush_streams, prepare_streams, say
from cryptomnesia.errors import CryptomnesiaError

VERBS = ("detect", "localize", "guard", "audit", "calibrate", "match", "find", "finetune")
"""The commands that the help shows first."""

_CommandLineError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)
"""What Typer raises for a command line that it cannot parse."""


class _Carried(Exception):
    """Carries an error through Typer, which gives some of them exit codes of its own; `__cause__` is the error."""


class _Commands(TyperGroup):
    """The commands, whose errors are not touched by Typer."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            _Carried: for an error that Typer would turn into exit code 1, which means flagged, or into an interruption.
        """
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt, OSError, SystemExit) as error:
            raise _Carried from error


def main() -> None:
    """Run the command line and exit.

    An error that was raised on purpose becomes one line and exit code 2. Any other exception is a bug: it becomes one
    line and exit code 4, and its traceback goes to a file that the line names.
    """
    prepare_streams()
    with _one_line_each() as failed, _noting_interruptions():
        code = _run()
        if (error := flush_streams()) is not None and code != BROKEN_PIPE:
            code = _ended(error)
            flush_streams()
    sys.exit(failed[0] if failed else code)


def _run() -> int:
    """Run the command line, and return the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except _Carried as carried:
        return _ended(carried.__cause__ or carried)
    # also what ends Python: packages of other people raise it
    except BaseException as error:
        return _ended(error)


def _ended(error: BaseException) -> int:
    """Say in one line why a command ended, and return the exit code."""
    # Typer ends Python where nobody reads the help any more
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        discard(sys.stdout)
        return BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt) or _interrupted.is_set():
        line, code = "interrupted", INTERRUPTED
    elif isinstance(error, CryptomnesiaError):
        line, code = str(error), UNUSABLE
    elif isinstance(error, _CommandLineError):
        if type(error).__name__ == "NoArgsIsHelpError":
            # the help was printed
            return UNUSABLE
        hint = getattr(getattr(error, "ctx", None), "command_path", "cryptomnesia")
        reason: str = getattr(error, "format_message", error.__str__)()
        line, code = f"{reason.replace(': Value error, ', ': ').rstrip('.')}; see {hint} --help", UNUSABLE
    else:
        line, code = ending_of(error)
    say(f"error: {line}")
    return code


_interrupted = threading.Event()
"""Set by Ctrl-C. Code in C, which imports NumPy for instance, may swallow the exception and fail with another one."""


@contextmanager
def _noting_interruptions() -> Iterator[None]:
    """Note every Ctrl-C during the block, unless somebody else handles it."""
    _interrupted.clear()
    default = signal.default_int_handler

    def note(number: int, frame: Any) -> None:
        _interrupted.set()
        default(number, frame)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)


class _OneLine(logging.Handler):
    """Writes every record of the library as one line to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record to standard error as one line."""
        say(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _one_line_each() -> Iterator[list[int]]:
    """Show warnings and errors of threads as one line each; yields a list that gets the exit codes of the latter."""
    failed: list[int] = []
    logger, handler = logging.getLogger("cryptomnesia"), _OneLine(logging.WARNING)
    before = warnings.showwarning, threading.excepthook, sys.unraisablehook

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        say(f"warning: {message}")

    def thread_failed(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            failed.append(_ended(arguments.exc_value))

    def ignored(arguments: Any) -> None:
        say(f"warning: ignored {type(arguments.exc_value).__name__}: {arguments.exc_value}")

    warnings.showwarning, threading.excepthook, sys.unraisablehook = show, thread_failed, ignored
    logger.addHandler(handler)
    try:
        yield failed
    finally:
        logger.removeHandler(handler)
        warnings.showwarning, threading.excepthook, sys.unraisablehook = before


@app.callback(cls=_Commands, invoke_without_command=True)
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
for group in (app, *(info.typer_instance for info in app.registered_groups)):
    for command in group.registered_commands if group is not None else ():
        if command.callback is not None:
            refuse_empty_paths(command.callback)
