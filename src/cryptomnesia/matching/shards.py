"""The shards of an index.

A shard is two files: descriptors in half precision, which are read through memory mapping, and a JSON file with the
paths of the pictures. The JSON file is written last, so a shard counts as finished when it exists.
"""

import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.files import replacing, write_whole

HELD = 2**27
"""Numbers that may be held in memory, half a gigabyte. An index with more is read again by every search."""


class Shards:
    """All finished shards of an index.

    Attributes:
        paths: paths of the pictures; a picture's position in this list is its place.
        shape: (T, P) of a descriptor.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        """Open the shards in `folder`.

        Raises:
            UsageError: if a shard is damaged.
        """
        self.paths: list[str] = []
        self.shape = shape
        self._values: list[np.ndarray] = []
        for names in finished(folder):
            paths, values = _read_shard(names, shape)
            self.paths += paths
            self._values.append(values)
        self._starts = np.cumsum([0, *map(len, self._values)])

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

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
        wanted = places.numpy()
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        described = torch.empty(len(wanted), *self.shape)
        for shard in np.unique(shards):
            rows = shards == shard
            values = self._values[shard][wanted[rows] - self._starts[shard]]
            described[torch.from_numpy(rows)] = torch.from_numpy(values).float()
        return described

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
    yield from sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9].json"))


def write_shard(stem: Path, values: np.ndarray, paths: list[str]) -> None:
    """Write the shard with this stem: descriptors (n, T, P) of the pictures with these paths."""
    with replacing(stem.with_suffix(".npy")) as unfinished, unfinished.open("wb") as file:
        np.save(file, values)
    write_json(stem.with_suffix(".json"), paths)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole."""
    write_whole(path, json.dumps(value))


def _read_shard(names: Path, shape: tuple[int, int]) -> tuple[list[str], np.ndarray]:
    """Paths and descriptors (n, T, P) of one shard."""
    try:
        paths = json.loads(names.read_text(encoding="utf-8"))
        values = np.load(names.with_suffix(".npy"), mmap_mode="r")
        if values.shape != (len(paths), *shape):
            raise ValueError(f"{len(paths)} paths, descriptors of shape {values.shape}")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"the shard {names.with_suffix('')} is damaged ({error}); build the index anew") from None
    return paths, values
