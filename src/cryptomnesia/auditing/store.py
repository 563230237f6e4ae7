"""A run directory: what an audit writes, and how several processes write it together.

    run.json                what the run depends on; written once, as a whole
    calibration.safetensors the calibration that the run is judged by, given or made in the run
    STAGE/00012.parquet     the rows of one batch of a stage
    assets/ab/ab12….png     pictures, by the hash of their content
    index/                  an index of training images, if the run made one
    locks/                  one file per batch, locked by the process that works on it

When the run is created it is settled which images make a batch. So a batch does not depend on who works on it, when, or
how often the run was interrupted. A batch is done when its file is there. A process that works on a batch holds its
lock, which the operating system gives back when the process ends, however it ends. So nothing is lost or counted twice,
and there are neither heartbeats nor claims that outlive their owner, both of which a database of work units would need.

A run in an object store looks the same, but its locks are on the machine that works on it. Several machines share such
a run through an engine (`cryptomnesia.engine`), which gives every batch to one process. If two processes make the same
batch after all, because one was taken for dead, the second writes what the first has written.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import Timeout

from cryptomnesia.errors import CryptomnesiaError, UnreachableError, UsageError, fix_of
from cryptomnesia.files import replacing, write_whole
from cryptomnesia.pipelines.fingerprint import flattened
from cryptomnesia.places import exists, is_remote, locked, make, names, patiently, place, read_text, settle, version_of

NOTES = frozenset({"skipped", "skipped_count", "unlike", "null"})
"""Parts of `Store.about` that are reported but change no result."""

FORMAT = 2
"""Version of the layout of a run directory."""

CALIBRATION = "calibration.safetensors"
"""The file of the calibration in a run directory."""

_DIGEST = b"cryptomnesia.sha256"
"""The key of the checksum in the metadata of a table."""

READERS = 16
"""Files that are read at once; a store takes long to answer, and answers many at a time."""

PATIENCE = 60.0
"""Seconds until what another machine has written has to be seen."""

_COUNTING = 0.02
"""Share of the time that may be spent on counting what is done."""

Row = Mapping[str, Any]
"""Column name → value, for one image."""


class StoreError(CryptomnesiaError):
    """The run directory cannot be written to; everything that was written before is intact."""


class Store:
    """A run directory.

    Attributes:
        folder: its place.
        about: what the run depends on, as `create` was given it.
        run: a random name, by which a machine knows that it sees this run.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the run in `folder`, a path or a URL.

        Raises:
            UsageError: if there is none, or it was made by another version.
        """
        folder = place(folder)
        file = folder / "run.json"
        try:
            held: dict[str, Any] = json.loads(read_text(file))
            version, about = held["format"], held["about"]
            if not isinstance(about, dict):
                raise TypeError(f"its `about` is a {type(about).__name__}")
        except FileNotFoundError:
            raise UsageError(f"no run in {folder}; make one with `cryptomnesia audit`") from None
        except UnreachableError:
            raise
        # JSON that is nested too deeply raises the last one
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise UsageError(f"{folder} is no run directory ({error}); give one that `audit` made") from None
        if version != FORMAT:
            newer = isinstance(version, int) and version > FORMAT
            fix = "update cryptomnesia" if newer else "audit again into another folder"
            raise UsageError(f"{folder} has run format {_short(version)}, this version reads {FORMAT}; {fix}")
        self.folder = folder
        self.about: dict[str, Any] = about
        # runs of earlier versions have none
        self.run: str = str(held.get("run", ""))
        # stage → number of batches, and when they are counted again
        self._counted: dict[str, tuple[int, float]] = {}
        # the version of a store's file that is known to be of this run
        self._version = ""

    @classmethod
    def create(cls, folder: Path, about: Mapping[str, Any]) -> "Store":
        """Begin a run, or open the one in `folder` if it is the same.

        Args:
            folder: of the run; made if it is not there.
            about: JSON values: everything that the run's results depend on, and `NOTES`.

        Raises:
            UsageError: if `folder` holds another run, naming what differs.
            StoreError: if it cannot be written to.
        """
        about = json.loads(json.dumps(about))
        with _writing(folder):
            make(folder)
            with locked(folder / ".lock"):
                if not exists(folder / "run.json"):
                    if exists(folder / CALIBRATION):
                        raise UsageError(f"{folder} holds a {CALIBRATION} that is of no run; give another folder")
                    write_whole(
                        folder / "run.json",
                        json.dumps({"format": FORMAT, "run": uuid4().hex, "about": about}, indent=2),
                    )
                    settle(folder / "run.json")
        store = cls(folder)
        if differences := store.differences(about):
            raise UsageError(f"{folder} holds another run: {'; '.join(differences)}; give another folder")
        return store

    def differences(self, about: Mapping[str, Any]) -> list[str]:
        """What `about` has otherwise than this run, in words; `NOTES` do not count."""
        wanted, present = (
            flattened({key: value for key, value in values.items() if key not in NOTES})
            for values in (about, self.about)
        )
        words = [
            f"{_bare(key)} is {_short(wanted.get(key))}, there {_short(present.get(key))}"
            for key in sorted(wanted.keys() | present.keys())
            if wanted.get(key) != present.get(key)
        ]
        # settings of a call are in the fingerprint too
        return list(dict.fromkeys(words))

    def work(self, stage: str, batches: int) -> Iterator[int]:
        """The numbers of batches to be done now; this process alone works on a batch until it asks for the next.

        When other processes hold all batches that are left, this waits for them and takes over what they do not finish.
        It ends when every batch of the stage is done.

        Args:
            stage: name of the stage.
            batches: number of batches of the stage.
        """
        locks = self.folder / "locks"
        with _writing(self.folder):
            make(locks)
        while missing := self.missing(stage, batches):
            worked = False
            for number in missing:
                with ExitStack() as stack:
                    with _writing(self.folder):
                        try:
                            stack.enter_context(locked(locks / f"{stage}-{number:05}", wait=False))
                        except Timeout:
                            continue
                    if not exists(self.path(stage, number)):
                        yield number
                        worked = True
            if not worked:
                time.sleep(0.2)

    def missing(self, stage: str, batches: int) -> list[int]:
        """The numbers of the batches of a stage that are not done.

        Raises:
            StoreError: if the folder cannot be read.
        """
        with _writing(self.folder):
            done = names(self.folder / stage, ".parquet")
        return [number for number in range(batches) if self.path(stage, number).name not in done]

    def wait(self, stage: str, batches: int) -> None:
        """Wait until this machine sees what others have written; shared file systems show it some seconds later.

        Raises:
            StoreError: if batches are missing after a minute.
        """
        until = time.monotonic() + PATIENCE
        while missing := self.missing(stage, batches):
            if time.monotonic() > until:
                raise StoreError(
                    f"{len(missing)} of {batches} batches of {stage} are not to be seen in {self.folder}; give a "
                    "folder that all machines share, or a URL, and the same command goes on"
                )
            time.sleep(1)

    def write(self, stage: str, number: int, rows: Sequence[Row]) -> None:
        """Write the rows of a batch; the batch is then done.

        Raises:
            StoreError: if there is no room.
            UsageError: if another machine has begun another run in the same folder of a store.
        """
        self._check_only()
        path = self.path(stage, number)
        with _writing(self.folder):
            make(path.parent)
            # files of processes that were killed; only the process that holds the batch's lock writes it
            for abandoned in () if is_remote(path) else path.parent.glob(f"{path.name}.*.unfinished"):
                abandoned.unlink()
            with replacing(path) as unfinished:
                pq.write_table(_with_digest(pa.Table.from_pylist([dict(row) for row in rows])), unfinished)

    def _check_only(self) -> None:
        """See that a folder in a store holds this run; machines do not see each other's locks there.

        Raises:
            UsageError: if another machine has begun another run there.
        """
        # the file may be large, of a million prompts, so it is read again only if it has changed
        if not is_remote(self.folder) or (version := version_of(self.folder / "run.json")) == self._version:
            return
        present = Store(self.folder)
        if present.run != self.run and (differences := present.differences(self.about)):
            raise UsageError(
                f"another machine has begun another run in {self.folder}: {'; '.join(differences)}; give another folder"
            )
        self._version = version

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The rows of all batches of a stage that are done, in order.

        Raises:
            UsageError: for a file that cannot be read, or was damaged.
        """
        files = [(int(file.stem), file) for file in self._files(stage)]
        with ThreadPoolExecutor(READERS) as pool:
            return [row for rows in pool.map(_read, [file for _, file in sorted(files)]) for row in rows]

    def done(self, stage: str) -> int:
        """The number of batches of a stage that are done; of a run of many batches it may be some seconds old."""
        count, due = self._counted.get(stage, (0, 0.0))
        began = time.monotonic()
        if began >= due:
            count = len(self._files(stage))
            took = time.monotonic() - began
            self._counted[stage] = count, began + took / _COUNTING
        return count

    def _files(self, stage: str) -> list[Path]:
        """The files of the batches of a stage that are done."""
        with _writing(self.folder):
            found = names(self.folder / stage, ".parquet")
        return [file for file in found.values() if file.stem.isdecimal()]

    def path(self, stage: str, number: int) -> Path:
        """The file that holds the rows of a batch when it is done."""
        return self.folder / stage / f"{number:05}.parquet"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process that works on this run into such a block meanwhile."""
        with ExitStack() as stack:
            with _writing(self.folder):
                stack.enter_context(locked(self.folder / ".lock"))
            yield

    def keep(self, content: bytes, suffix: str) -> str:
        """Keep a file under the hash of its content.

        Returns:
            Its path relative to the run directory.

        Raises:
            StoreError: if there is no room.
        """
        digest = hashlib.sha256(content).hexdigest()
        name = f"assets/{digest[:2]}/{digest}{suffix}"
        path = self.folder / name
        with _writing(self.folder):
            if not exists(path):
                make(path.parent)
                write_whole(path, content)
        return name


def batch_count(units: int, size: int) -> int:
    """The number of batches of at most `size` units that hold `units` of them."""
    return math.ceil(units / size)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into one line that says how to go on."""
    try:
        yield
    except UnreachableError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error.strerror or error}; {fix_of(error)}; what is there is intact, and the "
            "same command goes on with it"
        ) from None


def _with_digest(table: pa.Table) -> pa.Table:
    """The table with a checksum of what will be read from its file, in the file's metadata."""
    made = pa.BufferOutputStream()
    pq.write_table(table, made)
    read = pq.ParquetFile(pa.BufferReader(made.getvalue())).read()
    return table.replace_schema_metadata({_DIGEST: _digest(read)})


def _digest(table: pa.Table) -> bytes:
    """SHA-256 of names, types and values of a table."""
    made = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None)
    with pa.ipc.new_stream(made, plain.schema) as stream:
        stream.write_table(plain)
    return hashlib.sha256(made.getvalue()).hexdigest().encode()


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows of a batch."""
    try:
        # not `read_table`, which takes the names of folders for columns
        table = pq.ParquetFile(pa.BufferReader(patiently(file, file.read_bytes))).read()
        # runs of earlier versions have none
        wanted = (table.schema.metadata or {}).get(_DIGEST)
        if wanted is not None and wanted != _digest(table):
            raise ValueError("its checksum is wrong")
        return table.to_pylist()
    except UnreachableError:
        raise
    # pyarrow raises whatever a broken file leads it to; MemoryError for an absurd size, for instance
    except Exception as error:
        raise UsageError(
            f"{file} is damaged ({_short(' '.join(str(error).split()))}); delete it, and run `cryptomnesia audit` with "
            "the same settings to make it again"
        ) from None


def _bare(key: str) -> str:
    """The name of a setting without that of its group."""
    for group in ("settings.", "call.", "fingerprint.options.", "fingerprint."):
        if key.startswith(group):
            return key.removeprefix(group)
    return key


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
