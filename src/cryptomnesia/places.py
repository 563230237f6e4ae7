"""Places of files: paths on this machine, and URLs of fsspec such as `s3://bucket/folder`.

A place on this machine is a `pathlib.Path`, and one in a store a `upath.UPath`, which has the same methods. Both are
typed as `Path`. A file in a store is written whole or not at all, so no process ever reads half of one: see
`cryptomnesia.files.replacing`. What only reads from disks gets a copy by `local`.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit
from uuid import uuid4

from filelock import FileLock

from cryptomnesia.errors import UnreachableError, UsageError

CACHE = "CRYPTOMNESIA_CACHE"
"""The environment variable with the folder for copies of files that lie in a store."""

WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"})
"""Protocols of stores in which a file appears when it is complete; in others it is written under another name first."""

_WAITS = (1, 2, 4, 8, 16, 32)
"""Seconds between attempts to reach a store."""

_NAMED = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
"""Protocol → the package that reads it, where their names differ."""

_COLLAPSED = re.compile(r"[a-z][a-z0-9+.-]+:/[^/]")
"""What `pathlib` makes of a URL."""

_SETTLED = 2.0
"""Seconds after which a file that was written to a store is that of the last of several machines that wrote it at the
same moment."""

T = TypeVar("T")


def place(given: Any) -> Path:
    """The place that a text names.

    Args:
        given: a path; a URL such as `s3://bucket/folder`, whose package, `s3fs` for instance, has to be installed; or
            a `UPath` with options of its own. `file://` URLs are paths.

    Raises:
        UsageError: for a URL of an unknown kind, or one whose package is missing.
    """
    text = str(given)
    if isinstance(given, Path) and _COLLAPSED.match(text):
        raise UsageError(f"got the Path {text}, in which a URL has lost a slash; give the URL as a text")
    if "://" not in text:
        return Path(text)
    if "::" in text or urlsplit(text).username is not None:
        raise UsageError(
            f"got a URL with {'a chain' if '::' in text else 'a name or password'}, which would be written into runs; "
            "give PROTOCOL://BUCKET/FOLDER, and keys in environment variables"
        )
    from upath import UPath

    protocol, _, rest = text.partition("://")
    if protocol in ("file", "local"):
        return Path(rest)
    if not rest.strip("/"):
        raise UsageError(f"got {text}, which names no folder; give {protocol}://BUCKET/FOLDER")
    try:
        # other machines write there, too, so a listing that was kept may be wrong
        found = UPath(text, **{**getattr(given, "storage_options", {}), "use_listings_cache": False})
        _ = found.fs
    except ImportError:
        package = _NAMED.get(protocol, f"fsspec's package for {protocol}")
        raise UsageError(f"{text} needs {package}; pip install {package}") from None
    # every package has errors of its own
    except Exception as error:
        raise UsageError(f"got {text} ({error}); give a path, or a URL that fsspec knows") from None
    return cast(Path, found)


def is_remote(given: Any) -> bool:
    """Whether something is a place in a store."""
    return hasattr(given, "storage_options") and not isinstance(given, Path)


def only_local(given: Any) -> Any:
    """A path on this machine as it is.

    Raises:
        ValueError: for a URL.
    """
    if is_remote(given) or (isinstance(given, str) and "://" in given and not given.startswith("file://")):
        raise ValueError(f"expected a path on this machine, not the URL {given}")
    return Path(given.removeprefix("file://")) if isinstance(given, str) and given.startswith("file://") else given


def absolute(where: Path) -> Path:
    """A place that means the same in every process of this machine."""
    return where if is_remote(where) else where.absolute()


def fresh(where: Path) -> Any:
    """The file system of a place in a store, without what it remembers of listings.

    Other machines write there, too. Not every package of fsspec heeds `use_listings_cache`.
    """
    system = cast(Any, where).fs
    system.invalidate_cache()
    return system


def settle(where: Path) -> None:
    """Wait until other machines that write the file `where` at this moment have written it, if it lies in a store."""
    if is_remote(where):
        time.sleep(_SETTLED)


def make(folder: Path) -> None:
    """Make a folder; a store needs none.

    Raises:
        OSError: if it cannot be made.
    """
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def exists(where: Path) -> bool:
    """Whether there is a file or folder; a store that does not answer is no answer.

    Raises:
        UnreachableError: if a store cannot be reached.
    """
    if not is_remote(where):
        return where.exists()
    remote = cast(Any, where)
    try:
        patiently(where, lambda: fresh(where).info(remote.path))
    except FileNotFoundError:
        return False
    return True


def read_text(where: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        UnreachableError: if a store cannot be reached.
        OSError: if it cannot be read.
        ValueError: if it is no UTF-8.
    """
    return patiently(where, where.read_bytes).decode()


def remove(folder: Path) -> None:
    """Remove a folder with everything in it, if it is there.

    Raises:
        OSError: if it cannot be removed.
    """
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=not folder.exists())
        return
    remote = cast(Any, folder)
    # another process may have removed it
    with suppress(FileNotFoundError):
        patiently(folder, lambda: fresh(folder).rm(remote.path, recursive=True))


def names(folder: Path, suffix: str) -> dict[str, Path]:
    """Name → place of the files of a folder that end in `suffix`; empty if the folder is not there."""
    try:
        if is_remote(folder):
            remote = cast(Any, folder)
            paths = patiently(folder, lambda: fresh(folder).ls(remote.path, detail=False))
            found = [path.rstrip("/").rpartition("/")[2] for path in paths]
        else:
            found = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return {}
    return {name: folder / name for name in found if name.endswith(suffix)}


def patiently(where: Path, call: Callable[[], T]) -> T:
    """What a call returns that reads or writes `where`; tried again for a minute where a store cannot be reached.

    Raises:
        UnreachableError: if it still cannot be reached then.
        OSError: if the path or the permission is wrong.
    """
    if not is_remote(where):
        return call()
    for seconds in (*_WAITS, None):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            # packages raise them with a text alone, which Python loses as soon as they get the name of a file
            raise type(error)(error.errno or 0, error.strerror or str(error)) from None
        # each package has errors of its own for a server that does not answer
        except Exception as error:
            if seconds is None:
                reason = f"{type(error).__name__}: {error}"
                raise UnreachableError(
                    f"cannot reach {where} ({reason[:200]}); check the network and the keys; what is done is kept"
                ) from error
            time.sleep(seconds)
    raise AssertionError("the loop returns or raises")


def upload(source: Path, where: Path) -> None:
    """Write a file of this machine to a store, where it appears when it is complete.

    Raises:
        OSError: if the store cannot be reached.
    """
    remote = cast(Any, where)
    if remote.protocol in WHOLE:
        patiently(where, lambda: remote.fs.put_file(str(source), remote.path))
        return
    # two machines can have the same process number
    unfinished = f"{remote.path}.{uuid4().hex}.unfinished"
    patiently(where, lambda: remote.fs.put_file(str(source), unfinished))
    patiently(where, lambda: remote.fs.mv(unfinished, remote.path))


def local(where: Path) -> Path:
    """A file that can be read from disk: `where` itself, or a copy of it if it lies in a store.

    A machine copies a file once as long as it stays the same there. Copies are kept in the folder that the environment
    variable `CRYPTOMNESIA_CACHE` names, by default `cryptomnesia` in the user's cache.

    Raises:
        FileNotFoundError: if it does not exist.
        OSError: if the store cannot be reached, or the copy cannot be written.
    """
    if not is_remote(where):
        return where
    remote = cast(Any, where)
    version = version_of(where)
    folder = _cache() / hashlib.sha256(str(where).encode()).hexdigest()[:32]
    copy = folder / f"{hashlib.sha256(version.encode()).hexdigest()[:16]}-{where.name}"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not copy.exists():
                for older in folder.glob(f"*-{where.name}"):
                    older.unlink()
                unfinished = copy.with_suffix(".unfinished")
                patiently(where, lambda: remote.fs.get_file(remote.path, str(unfinished)))
                unfinished.replace(copy)
    return copy


def version_of(where: Path) -> str:
    """A text that is another one as soon as a file in a store has changed.

    Raises:
        FileNotFoundError: if there is no file.
        UnreachableError: if the store cannot be reached.
    """
    # size, time and hash of the content, as far as the store tells them
    found = patiently(where, lambda: fresh(where).info(cast(Any, where).path))
    if not found.keys() & {"ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "md5Hash", "created"}:
        # it may have changed, and nobody would know
        return uuid4().hex
    return str(found)


@contextmanager
def locked(where: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `where` in the block. The operating system gives it back however the process ends.

    The lock of a place in a store is a file on this machine, so it is seen by the processes of this machine alone.

    Raises:
        filelock.Timeout: if another process holds it, without `wait`.
        OSError: if it cannot be written.
    """
    if is_remote(where):
        folder = Path(tempfile.gettempdir()) / f"cryptomnesia-locks-{os.getuid() if hasattr(os, 'getuid') else 0}"
        folder.mkdir(mode=0o700, exist_ok=True)
        where = folder / hashlib.sha256(str(where).encode()).hexdigest()
    lock = FileLock(where)
    lock.acquire(timeout=-1 if wait else 0)
    try:
        yield
    finally:
        lock.release()


def _cache() -> Path:
    """The folder for copies."""
    if given := os.environ.get(CACHE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryptomnesia"
