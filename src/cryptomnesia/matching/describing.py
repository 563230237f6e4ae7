"""Describe the pictures of a source, and write them as shards of an index.

On one machine it is done with the whole source. On a cluster every process does it with one unit of the source after
the other. A process that dies has no part in the index but whole shards, and who does its unit again writes the same.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch

from cryptomnesia.decoding import Readings
from cryptomnesia.errors import UnreachableError, UsageError, fix_of
from cryptomnesia.images import unit as scaled
from cryptomnesia.matching import about
from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.matching.reading import Picture, read
from cryptomnesia.matching.shards import Row, write_shard
from cryptomnesia.matching.sources import AGAIN, Item, Packed, Span, as_text, unpacked
from cryptomnesia.places import is_remote, patiently

PATIENCE = 60.0
"""Seconds after which a machine sees what another one has written to a shared folder."""

_PORTION = 256
"""Pictures that are described at once."""


@dataclass
class Found:
    """What has become of the pictures of a source, or of a unit of them.

    Attributes:
        known: name → what the index knows of that picture.
        kept: names of pictures whose rows in the index stay.
        touched: names among them whose stamp or caption has changed → row with the new ones.
        new: names of pictures that have been described.
        skipped: name → why it is left out.
        shards: name of a shard that has been written → number of its rows.
        unseen: files that could not be read here.
        done: number of items.
    """

    known: Mapping[str, Row]
    kept: set[str] = field(default_factory=set)
    touched: dict[str, Row] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    unseen: list[Path] = field(default_factory=list)
    done: int = 0

    def settles(self, item: Item) -> bool:
        """Whether an item need not be read. If so, this notes what has become of it."""
        row = self.known.get(item.name)
        if item.problem:
            self.leave_out(item, item.problem)
        elif self.has(item.name):
            self.skipped[f"{item.name} (again)"] = AGAIN
        elif row is not None and row.stamp and (row.stamp, row.caption) == (item.stamp, item.caption):
            self.kept.add(item.name)
        else:
            return False
        return True

    def has(self, name: str) -> bool:
        """Whether a picture of this name is in the index already, or has been described."""
        return name in self.kept or name in self.new

    def leave_out(self, item: Item, why: str) -> None:
        """Note that an item is left out."""
        self.skipped[item.name] = why
        file = item.content.path if isinstance(item.content, Span) else item.content
        if isinstance(file, Path) and not can_read(file):
            self.unseen.append(file)


@dataclass(frozen=True)
class Unit:
    """Pictures that one process of a cluster describes.

    Attributes:
        number: of the unit in its build.
        parts: of the source.
        known: name → what the index knows of that picture, for all pictures of the parts.
    """

    number: int
    parts: list[Item | Packed]
    known: dict[str, Row]

    def __repr__(self) -> str:
        """Number and first file, for messages."""
        return f"unit {self.number}, from {as_text(self.parts[0].name)} on"


@dataclass
class Describer:
    """What describes pictures, in one process.

    Attributes:
        folder: of the index.
        descriptor: of the index.
        readings: of the index.
        shard: readings per shard.
        threads: that decode pictures; as many as there are cores if it is None.
        build: name of the build, with which the names of a cluster's shards begin.
    """

    folder: Path
    descriptor: Descriptor
    readings: Readings
    shard: int
    threads: int | None
    build: str

    def __call__(self, unit: Unit) -> Found:
        """Describe a unit in a process of a cluster.

        Raises:
            UsageError: if this machine does not see the index, or cannot write to it.
        """
        found = Found(unit.known)
        found.unseen += [part.path for part in unit.parts if isinstance(part, Packed) and not can_read(part.path)]
        names = self.names(unit.number)
        try:
            self._check_seen()
            for _ in self.described(unit.parts, found, names):
                pass
        except OSError as error:
            raise unwritable(self.folder, error) from None
        # the driver knows it
        found.known = {}
        return found

    def names(self, unit: int) -> Iterator[str]:
        """Names of the shards of a unit, which those of no other build have."""
        return (f"{self.build}-{unit:06}-{number:03}" for number in count())

    def described(
        self,
        parts: Iterable[Item | Packed],
        found: Found,
        names: Iterator[str],
        begin: Callable[[], None] = lambda: None,
    ) -> Generator[bool, None, None]:
        """Describe the pictures of some parts, and write them as shards.

        Args:
            parts: of the source.
            found: notes what has become of the pictures.
            names: of the shards.
            begin: called before the first picture is described.

        Yields:
            After each portion, whether any picture of it had to be read.
        """
        rows: list[tuple[np.ndarray, Row]] = []
        with ThreadPoolExecutor(self.threads or os.cpu_count()) as pool:
            for portion in _portions(unpacked(parts), min(_PORTION, self.shard)):
                fresh: dict[str, Item] = {}
                for item in portion:
                    if item.name in fresh:
                        found.skipped[f"{item.name} (again)"] = AGAIN
                    elif not found.settles(item):
                        fresh[item.name] = item
                if fresh:
                    begin()
                    rows += self._described(fresh, found, pool)
                found.done += len(portion)
                yield bool(fresh)
                while len(rows) >= self.shard:
                    self._write(rows, self.shard, found, next(names))
        if rows:
            self._write(rows, len(rows), found, next(names))

    def _described(
        self, fresh: Mapping[str, Item], found: Found, pool: ThreadPoolExecutor
    ) -> list[tuple[np.ndarray, Row]]:
        """Descriptor and row of every reading of some pictures; notes those that have none or have not changed."""
        side, known = self.descriptor.side, found.known
        digests = [known[name].digest if name in known else "" for name in fresh]
        pictures: Iterator[Picture] = pool.map(
            lambda item, digest: read(item, side, self.readings, digest), fresh.values(), digests
        )
        squares, rows = [], []
        for item, one in zip(fresh.values(), pictures, strict=True):
            if one.problem:
                found.leave_out(item, one.problem)
            elif not one.squares:
                found.kept.add(item.name)
                found.touched[item.name] = Row(item.name, "", item.caption, item.stamp, one.digest)
            else:
                found.new.add(item.name)
                for reading, array in one.squares.items():
                    squares.append(scaled(array))
                    rows.append(Row(item.name, reading, item.caption, item.stamp, one.digest))
        if not squares:
            return []
        return list(zip(self.descriptor.describe(torch.stack(squares)).half().numpy(), rows, strict=True))

    def _write(self, described: list[tuple[np.ndarray, Row]], size: int, found: Found, name: str) -> None:
        """Write the first `size` rows as a shard, and take them away; the readings of a picture stay together."""
        while size < len(described) and described[size][1].name == described[size - 1][1].name:
            size += 1
        values, rows = zip(*described[:size], strict=True)
        check_only(self.folder, self.build)
        write_shard(self.folder / name, np.stack(values), list(rows))
        found.shards[name] = size
        del described[:size]

    def _check_seen(self) -> None:
        """Check that this machine sees the index that is being built.

        Raises:
            UsageError: if there is none in the folder, or that of another build.
        """
        until = time.monotonic() + PATIENCE
        while _build_in(self.folder) != self.build:
            if time.monotonic() > until:
                raise UsageError(
                    f"the machine {socket.gethostname()} of the cluster does not see the build of the index in "
                    f"{self.folder}; give a folder that all machines share, or a URL such as s3://bucket/index"
                )
            time.sleep(1)


def check_only(folder: Path, build: str) -> None:
    """Refuse to go on with a build of an index in a store where another machine has begun one after it.

    Machines do not see each other's locks there. What the build has written belongs to the other one by now.

    Raises:
        UsageError: saying so.
    """
    if is_remote(folder) and _build_in(folder) != build:
        raise UsageError(
            f"another machine has begun to build the index {folder}; wait until it ends, and give the command again"
        )


def can_read(file: Path) -> bool:
    """Whether this machine can read a file."""
    try:
        # a pipe would wait for its writer
        if not file.is_file():
            return False
        file.open("rb").close()
    except OSError:
        return False
    return True


def unwritable(folder: Path, error: OSError) -> UsageError:
    """The error that an index cannot be written."""
    return UsageError(f"cannot write the index {folder}: {error.strerror or error}; {fix_of(error)}")


def _build_in(folder: Path) -> str | None:
    """Name of the build that is under way in a folder, None if there is none."""
    path = folder / about.FILE
    try:
        return json.loads(patiently(path, lambda: path.read_text(encoding="utf-8"))).get("build")
    except UnreachableError:
        raise
    except (OSError, ValueError, AttributeError):
        return None


def _portions(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    portion: list[Item] = []
    for item in items:
        portion.append(item)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion
