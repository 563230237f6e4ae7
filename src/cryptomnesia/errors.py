"""The errors this library raises on purpose; each message says what was got, what was expected and the fix."""

import errno

_FIXES = {
    errno.ENOSPC: "make room, or give another place",
    errno.EDQUOT: "make room, or give another place",
    errno.EFBIG: "give a place that takes larger files",
    errno.EACCES: "give another place, or change its permissions",
    errno.EPERM: "give another place, or change its permissions",
    errno.EROFS: "give a place that can be written to",
    errno.ENOENT: "check the path",
    errno.EEXIST: "a file is in the way; give another name",
    errno.ENOTDIR: "a file is where a folder is needed; give another path",
    errno.EISDIR: "a folder is where a file is needed; give the name of a file",
    errno.ENOTEMPTY: "give another folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle; give another path",
    errno.EMFILE: "let the process open more files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "give the process more memory",
}
"""Number of an error of the operating system → what the user can do."""


class CryptomnesiaError(Exception):
    """Base class of every error raised on purpose."""

    def __init__(self, message: str = "") -> None:
        """Put the message into one line; it may quote names from files, which hold anything."""
        super().__init__(" ".join(str(message).split()))


class UsageError(CryptomnesiaError, ValueError):
    """An argument, file or model that cannot be used as given."""


class UnreachableError(CryptomnesiaError, OSError):
    """A store cannot be reached; what was written before is intact."""

    def __str__(self) -> str:
        """The message alone; `OSError` would put the name of a file in its place."""
        return str(self.args[0])


class NotFiniteError(UsageError):
    """The model's output holds NaN or infinity."""


def fix_of(error: OSError) -> str:
    """What the user can do about an error of the operating system."""
    return _FIXES.get(error.errno or 0, "give another place")
