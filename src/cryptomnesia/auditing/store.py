"""A run directory: what an audit writes, and how several processes write it together.

    run.json          what is run, with every setting; written once, as a whole
    STAGE/00012.parquet   the rows of one batch of a stage, written to another name and renamed
    assets/ab/ab12….png   pictures and maps by the hash of their content
    locks/            one file per batch, locked by the process that works on it

Which images make a batch is settled when the run is created, so a batch does not depend on who works on it, when,
or how often the run was interrupted. A batch is done when its file is there. A process that works on one holds its
lock, which the operating system gives back when the process ends, however it ends. So nothing is lost or counted
twice, there are no heartbeats, and no claims that outlive their owner; a database of work units would have both.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from cryptomnesia.errors import CryptomnesiaError, UsageError

TOLD = frozenset({"skipped", "skipped_count"})
"""Parts of `Store.about` that are worth saying, but change no result."""

FORMAT = 1
"""Version of the layout of a run directory."""

Row = Mapping[str, Any]
"""Column name → value, of one image."""


class StoreError(CryptomnesiaError):
    """The run directory cannot be written to; what was written is intact."""


class Store:
    """A run directory.

    Attributes:
        folder: where it is.
        about: what `create` was given.
    """

    def __init__(self, folder: Path) -> None:
        """Open the run in `folder`.

        Raises:
            UsageError: if there is none, or it was made by a newer version.
        """
        try:
            held: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            version, about = held["format"], held["about"]
        except FileNotFoundError:
            raise UsageError(f"no run in {folder}; make one with `cryptomnesia audit`") from None
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UsageError(f"{folder} is no run directory ({error}); give one that `audit` made") from None
        if version > FORMAT:
            raise UsageError(
                f"{folder} has run format {version}, this version reads up to {FORMAT}; update cryptomnesia"
            )
        self.folder = folder
        self.about: dict[str, Any] = about

    @classmethod
    def create(cls, folder: Path, about: Mapping[str, Any]) -> "Store":
        """Begin a run, or open the one in `folder` if it is the same.

        Args:
            folder: made if it is not there.
            about: JSON values: everything that the run's results depend on, and what is `TOLD`.

        Raises:
            UsageError: if `folder` holds another run, naming what differs.
            StoreError: if it cannot be written to.
        """
        about = json.loads(json.dumps(about))
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                if not (folder / "run.json").exists():
                    _write(folder / "run.json", json.dumps({"format": FORMAT, "about": about}, indent=2).encode())
        store = cls(folder)
        now, there = (_flat({key: each[key] for key in each.keys() - TOLD}) for each in (about, store.about))
        apart = [
            f"{key} is {_short(now.get(key))}, there {_short(there.get(key))}"
            for key in sorted(now.keys() | there.keys())
            if now.get(key) != there.get(key)
        ]
        if apart:
            raise UsageError(f"{folder} holds another run: {'; '.join(apart)}; give another folder")
        return store

    def work(self, stage: str, batches: int) -> Iterator[int]:
        """The numbers of batches to be done now, each held by this process alone until the next is asked for.

        When others hold all that is left, this waits for them, and takes over what they do not finish. It ends
        when every batch of the stage is done.
        """
        locks = self.folder / "locks"
        with _writing(self.folder):
            locks.mkdir(exist_ok=True)
        while missing := [number for number in range(batches) if not self.path(stage, number).exists()]:
            worked = False
            for number in missing:
                lock = FileLock(locks / f"{stage}-{number:05}")
                with _writing(self.folder):
                    try:
                        lock.acquire(timeout=0)
                    except Timeout:
                        continue
                try:
                    if not self.path(stage, number).exists():
                        yield number
                        worked = True
                finally:
                    lock.release()
            if not worked:
                time.sleep(0.2)

    def write(self, stage: str, number: int, rows: Sequence[Row]) -> None:
        """Write the rows of a batch, which is done with that.

        Raises:
            StoreError: if there is no room.
        """
        path = self.path(stage, number)
        with _writing(self.folder):
            path.parent.mkdir(exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
            try:
                pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), unfinished)
                unfinished.replace(path)
            finally:
                # also those of processes that were killed; who writes a batch holds its lock
                for left in path.parent.glob(f"{path.stem}.*.unfinished"):
                    left.unlink()

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The rows of all batches of a stage that are done, in order."""
        files = sorted((self.folder / stage).glob("[0-9]*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def done(self, stage: str) -> int:
        """The number of batches of a stage that are done."""
        return len(list((self.folder / stage).glob("[0-9]*.parquet")))

    def path(self, stage: str, number: int) -> Path:
        """Where the rows of a batch are when it is done."""
        return self.folder / stage / f"{number:05}.parquet"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold off the other processes that work on this run."""
        lock = FileLock(self.folder / ".lock")
        with _writing(self.folder):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def keep(self, content: bytes, suffix: str) -> str:
        """Keep a file under the hash of its content; its path from the run directory.

        Raises:
            StoreError: if there is no room.
        """
        digest = hashlib.sha256(content).hexdigest()
        name = f"assets/{digest[:2]}/{digest}{suffix}"
        path = self.folder / name
        with _writing(self.folder):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, content)
        return name


def batch_count(units: int, size: int) -> int:
    """The number of batches of `size` that hold `units`."""
    return math.ceil(units / size)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one line what went wrong, and that the run can go on."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}; what is there is intact, make room and run the same "
            "command again to go on"
        ) from None


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """Without the levels between: `settings` → `steps` becomes `steps`."""
    flat: dict[str, Any] = {}
    for key, value in about.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
