"""Standard output and standard error, which never raise for a letter that a terminal does not have."""

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

_PLAIN = str.maketrans(
    {
        "≤": "<=",
        "≥": ">=",
        "≈": "~",
        "×": "x",
        "–": "-",
        "—": "-",
        "·": "-",
        "…": "...",
        "→": "->",
        "−": "-",
        "σ": "sigma",
    }
)
"""Letters of this package's own texts → what stands for them where a code page lacks them."""

_ERRORS = "cryptomnesia"
"""The name under which `_replace` is registered."""


def prepare_streams() -> None:
    """Let both streams write every text, and open those that the shell closed.

    A letter that the encoding lacks, in a Windows code page for instance, is written in plain letters if there is a
    usual way to do so, and as its number otherwise.
    """
    codecs.register_error(_ERRORS, _replace)
    # a file that is opened later would get the number of a closed stream, and with it what is printed
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 - it stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def say(line: str) -> None:
    """Write a line to standard error; it is lost where nobody can read it."""
    with suppress(OSError, ValueError):
        print(" ".join(line.split()), file=sys.stderr, flush=True)  # noqa: T201 - standard error is for this


def discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, to the null device.

    Python would fail once more when it ends, with an exit code of its own.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flush_streams() -> OSError | None:
    """Write what both streams still hold, and return the error of standard output if it cannot be written.

    A stream that fails is discarded.
    """
    failed: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            failed = error if stream is sys.stdout else failed
            discard(stream)
        # somebody closed it
        except ValueError:
            pass
    return failed


def _replace(error: UnicodeError) -> tuple[str, int]:
    """What stands for letters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = missing.translate(_PLAIN)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end
