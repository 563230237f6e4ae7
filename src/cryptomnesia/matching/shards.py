"""The shards of an index.

A shard is three files: descriptors in half precision, which are read through memory mapping, captions and digests of
the pictures, and a JSON file with their paths. The JSON file is written last, so a shard counts as finished when it
exists. Every reading of a picture is a row; the readings of one picture follow each other.

The name of a shard is its number. What a cluster wrote, and what lies in a store, has four numbers: that of the first
shard of the build, a random one, so that no process of another build writes the same shard, that of the unit of work,
and that of the shard in its unit.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UnreachableError, UsageError
from cryptomnesia.files import replacing, write_whole
from cryptomnesia.places import local, read_text
from cryptomnesia.places import names as files

HELD = 2**27
"""Numbers that may be held in memory, half a gigabyte. An index with more is read again by every search."""


_NUMBERS = re.compile(r"[0-9]+(-[0-9]+)*")
"""What names of shards look like."""


@dataclass(frozen=True, slots=True)
class Row:
    """One reading of a picture.

    Attributes:
        name: of the picture.
        reading: of the picture, "" if it has only one.
        caption: of the picture, "" if it has none.
        stamp: size and times of its file, "" if it has none.
        digest: of its content.
    """

    name: str
    reading: str = ""
    caption: str = ""
    stamp: str = ""
    digest: str = ""

    def read_as(self, reading: str) -> "Row":
        """The row of another reading of the same picture."""
        return replace(self, reading=reading)


class Shards:
    """All finished shards of an index.

    Attributes:
        paths: paths of the pictures, one per reading; a reading's position in this list is its place.
        readings: place → reading, for pictures that have more than one.
        shape: (T, P) of a descriptor.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        """Open the shards in `folder`.

        Raises:
            UsageError: if a shard is damaged.
        """
        self.paths: list[str] = []
        self.readings: dict[int, str] = {}
        self.shape = shape
        self._values: list[np.ndarray] = []
        self._names: list[Path] = list(finished(folder))
        for names in self._names:
            paths, readings, values = _read_shard(names, shape)
            self.readings |= {len(self.paths) + row: reading for row, reading in readings.items()}
            self.paths += paths
            self._values.append(values)
        self._captions: dict[int, list[str]] = {}
        self._starts = np.cumsum([0, *map(len, self._values)])

    def __len__(self) -> int:
        """The number of places."""
        return len(self.paths)

    @cached_property
    def pictures(self) -> Tensor | None:
        """The number of the picture at every place, (n,) int64; None where every picture has one reading."""
        if not self.readings:
            return None
        new = [one != other for one, other in pairwise(self.paths)]
        return torch.tensor([0, *new]).cumsum(0)

    @cached_property
    def firsts(self) -> Tensor:
        """The place of the first reading of every picture, (n,) int64."""
        places = torch.arange(len(self))
        if self.pictures is None:
            return places
        return places[torch.cat([torch.ones(1, dtype=torch.bool), self.pictures.diff() > 0])]

    def same(self, places: Tensor, others: Tensor) -> Tensor:
        """Whether places and others are readings of the same picture; shapes as in a comparison of both."""
        if self.pictures is None:
            return places == others
        return self.pictures[places] == self.pictures[others]

    def once(self, places: Tensor) -> Tensor:
        """Which of some places (n,) are the first one of their picture among them, (n,) bool."""
        first = torch.ones(len(places), dtype=torch.bool)
        if self.pictures is not None:
            first[:] = False
            first[torch.from_numpy(np.unique(self.pictures[places].numpy(), return_index=True)[1])] = True
        return first

    def caption(self, place: int) -> str:
        """The caption of the picture at a place, "" if it has none."""
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        if shard not in self._captions:
            names = self._names[shard]
            self._captions[shard] = _read_more(names, len(self._values[shard]))[0]
        return self._captions[shard][place - int(self._starts[shard])]

    @cached_property
    def _held(self) -> Tensor | None:
        """All descriptors (n, T, P), or None where they are too many."""
        if len(self) * math.prod(self.shape) > HELD:
            return None
        return torch.from_numpy(np.concatenate(self._values).astype(np.float32))

    def at(self, places: Tensor) -> Tensor:
        """Descriptors (n, T, P) of the pictures at `places` (n,)."""
        if self._held is not None:
            return self._held[places]
        wanted, order = places.sort()
        bounds = np.searchsorted(wanted.numpy(), self._starts)
        stored = np.empty((len(wanted), *self.shape), np.float16)
        for shard in np.flatnonzero(np.diff(bounds)):
            rows = slice(bounds[shard], bounds[shard + 1])
            within = wanted[rows].numpy() - self._starts[shard]
            # with this mode numpy writes into `stored` without a copy
            np.take(self._values[shard], within, axis=0, out=stored[rows], mode="clip")
        described = torch.from_numpy(stored).float()
        return described if order.equal(torch.arange(len(order))) else described[order.argsort()]

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield all descriptors in portions: (place of the first picture, descriptors (n, T, P))."""
        if self._held is not None:
            yield from zip(range(0, len(self), 2048), self._held.split(2048), strict=True)
            return
        for start, values in zip(self._starts, self._values, strict=False):
            for begin in range(0, len(values), 2048):
                yield int(start) + begin, torch.from_numpy(values[begin : begin + 2048].astype(np.float32))


def spread(total: int, wanted: int) -> Tensor:
    """At most `wanted` of `total` places, evenly spaced from the first to the last, int64."""
    # single precision cannot distinguish places beyond sixteen million
    return torch.linspace(0, total - 1, min(wanted, total), dtype=torch.float64).round().long()


def finished(folder: Path) -> Iterator[Path]:
    """Yield the JSON files of the finished shards, in their order."""
    yield from sorted((path for path in files(folder, ".json").values() if _NUMBERS.fullmatch(path.stem)), key=numbers)


def numbers(names: Path) -> tuple[int, ...]:
    """The numbers in the name of a shard."""
    return tuple(map(int, names.stem.split("-")))


def write_shard(stem: Path, values: np.ndarray, rows: list[Row]) -> None:
    """Write the shard with this stem: descriptors (n, T, P) and what is known of each."""
    with replacing(stem.with_suffix(".npy")) as unfinished, unfinished.open("wb") as file:
        np.save(file, values)
    _write_rows(stem, rows)


def rewrite_shard(names: Path, rows: list[Row], kept: list[bool]) -> None:
    """Write a finished shard again with other rows, of which only those that are `kept` stay."""
    stem = names.with_suffix("")
    if all(kept):
        _write_rows(stem, rows)
        return
    values = np.load(local(stem.with_suffix(".npy")))
    # without this file the shard does not count as finished; a build that is stopped here describes its pictures again
    names.unlink()
    if any(kept):
        write_shard(stem, values[np.array(kept)], [row for row, stays in zip(rows, kept, strict=True) if stays])
    else:
        stem.with_suffix(".npy").unlink()
        _more(stem).unlink(missing_ok=True)


def read_rows(names: Path) -> list[Row]:
    """What a finished shard knows of its pictures.

    Raises:
        UsageError: if it is damaged.
    """
    paths, readings = _read_names(names)
    more = _read_more(names, len(paths))
    return [
        Row(path, readings.get(number, ""), *values)
        for number, (path, *values) in enumerate(zip(paths, *more, strict=True))
    ]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole."""
    write_whole(path, json.dumps(value))


def _more(stem: Path) -> Path:
    """The file of a shard with what only a build and captions need."""
    return stem.with_suffix(".more")


def _write_rows(stem: Path, rows: list[Row]) -> None:
    columns = {name: [getattr(row, name) for row in rows] for name in ("caption", "stamp", "digest")}
    write_json(_more(stem), columns)
    readings = {number: row.reading for number, row in enumerate(rows) if row.reading}
    write_json(stem.with_suffix(".json"), {"paths": [row.name for row in rows], "readings": readings})


def _read_shard(names: Path, shape: tuple[int, int]) -> tuple[list[str], dict[int, str], np.ndarray]:
    """Paths, readings by row and descriptors (n, T, P) of one shard."""
    paths, readings = _read_names(names)
    try:
        values = np.load(local(names.with_suffix(".npy")), mmap_mode="r")
        if values.shape != (len(paths), *shape) or values.dtype != np.float16:
            raise ValueError(f"{len(paths)} paths, descriptors of shape {values.shape}, {values.dtype}")
    except UnreachableError:
        raise
    # numpy raises whatever a damaged file leads it to: EOFError, ValueError, the errors of Python's tokenizer
    except Exception as error:
        raise _damaged(names, error) from None
    # a plain array is a view of the same memory, and several times as fast to take rows from
    return paths, readings, np.asarray(values)


def _read_names(names: Path) -> tuple[list[str], dict[int, str]]:
    """Paths and readings by row of one shard."""
    try:
        found = json.loads(read_text(names))
        paths = found["paths"]
        readings = {int(row): reading for row, reading in found["readings"].items()}
        if not isinstance(paths, list) or not all(isinstance(text, str) for text in [*paths, *readings.values()]):
            raise ValueError("its names are no texts")
    except UnreachableError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(names, error) from None
    return paths, readings


def _read_more(names: Path, size: int) -> tuple[list[str], list[str], list[str]]:
    """Captions, stamps and digests of the rows of one shard."""
    try:
        found = json.loads(read_text(_more(names.with_suffix(""))))
        columns = tuple(found[name] for name in ("caption", "stamp", "digest"))
        if any(not isinstance(column, list) or len(column) != size for column in columns):
            raise ValueError(f"{size} paths, other numbers of captions")
        if not all(isinstance(text, str) for column in columns for text in column):
            raise ValueError("its captions are no texts")
    except UnreachableError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(names, error) from None
    return columns


def _damaged(names: Path, error: Exception) -> UsageError:
    return UsageError(f"the shard {names.with_suffix('')} is damaged ({error}); build the index anew")
