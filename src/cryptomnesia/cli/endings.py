"""How a command ends after an error: the exit code and one line; the traceback of a bug goes to a file."""

import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from cryptomnesia import __version__
from cryptomnesia.errors import fix_of

UNUSABLE, FAILED, INTERRUPTED, BROKEN_PIPE = 2, 4, 130, 141
"""Exit codes: input that cannot be used, a bug in the program, Ctrl-C, and nobody who reads the output any more."""

_LONGEST = 300
"""Letters of an unexpected error that are shown in the line."""

_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|ALLOC_FAILED|Storage size calculation overflowed|"
    r"integer multiplication overflow",
    re.IGNORECASE,
)
"""What torch says when something does not fit into memory; not every such error has a class of its own."""

_SECRET_WORD = r"(?:token|password|passwd|secret|api[-_]?key|authorization)"

_SECRETS = (
    (re.compile(r"\bhf_\w{8,}"), "hf_…"),
    (re.compile(r"(?<=://)[^/\s@]+@"), "…@"),
    (re.compile(rf"(?i)({_SECRET_WORD}['\"]?\s*[=:]\s*['\"]?)[^\s'\",)]+"), r"\1…"),
    (re.compile(rf"(?i)(--[\w-]*{_SECRET_WORD}['\"]?,?\s+['\"]?)[^\s'\",)]+"), r"\1…"),
)
"""What looks like a secret → what is written instead."""

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables whose values are never written."""


class Ending(NamedTuple):
    """How a command ends.

    Attributes:
        line: what is said on standard error.
        code: the exit code.
    """

    line: str
    code: int


def ending_of(error: BaseException) -> Ending:
    """How a command ends that raised an error which nobody turned into a `CryptomnesiaError`."""
    text = _one_line(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_memory(error)):
        return Ending(
            f"the memory is not enough ({text or type(error).__name__}); give a smaller --batch-size, smaller "
            "pictures, or a machine with more memory",
            UNUSABLE,
        )
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if error.filename is not None else ""
        reason = error.strerror or text
        return Ending(f"{place}{reason}; {fix_of(error)}", UNUSABLE)
    name = type(error).__name__
    shown = f"{name}: {text}" if text else name
    path = write_log(error)
    where = f"the traceback is in {path}" if path else f"it failed at {_place(error)}, and no log can be written"
    return Ending(f"the program failed ({shown}); {where}; please report it", FAILED)


def write_log(error: BaseException) -> Path | None:
    """Write the traceback of an error with what one needs to find its cause; None where no file can be written."""
    text = without_secrets("\n".join(_report(error)))
    name = f"error-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            # the command line may hold what is nobody else's business
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(text.encode("utf-8", "backslashreplace"))
        except (OSError, ValueError):
            continue
        return path
    return None


def without_secrets(text: str) -> str:
    """A text without what looks like a password, or is the value of an environment variable that holds one."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name):
            text = text.replace(value, "…")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _report(error: BaseException) -> Iterator[str]:
    """The lines of a log."""
    yield "Read this before you send it to anybody: paths and prompts of your command are in it."
    yield ""
    yield f"command: {sys.argv!r}"
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith("CRYPTOMNESIA_")}
    yield f"variables: {variables!r}"
    yield f"cryptomnesia {__version__}, Python {platform.python_version()}, {platform.platform()}"
    for package in ("torch", "diffusers", "transformers", "pyarrow", "typer"):
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} is not installed"
    yield ""
    yield "".join(traceback.format_exception(error))


def _folders() -> Iterator[Path]:
    """Folders for a log, the best one first."""
    state = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME", "")
    if state and Path(state).is_absolute():
        yield Path(state) / "cryptomnesia"
    elif home := os.path.expanduser("~"):  # noqa: PTH111 - Path.home raises where there is none
        if Path(home).is_absolute():
            yield Path(home) / ".local" / "state" / "cryptomnesia"
    try:
        yield Path(tempfile.gettempdir())
    except OSError:
        return


def _is_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory is not enough."""
    return type(error).__name__ == "OutOfMemoryError" or _MEMORY.search(str(error)) is not None


def _place(error: BaseException) -> str:
    """File and line where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def _one_line(error: BaseException) -> str:
    """The text of an error as one line, cut if it is long."""
    try:
        text = " ".join(without_secrets(str(error)).split())
    # the code of another package may raise anything
    except Exception:
        return ""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
