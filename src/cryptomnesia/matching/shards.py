"""The shards of an index.

A shard is a file of descriptors in half precision, read through memory mapping, and a JSON file with the pictures'
paths, which is written last: a shard counts when that is there.
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

HELD = 2**27
"""Numbers that are held in memory, half a gigabyte of them; more are read anew by every search."""


class Shards:
    """All finished shards of an index.

    Attributes:
        paths: of the pictures.
        shape: (T, P) of a descriptor.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        """Open them."""
        self.paths: list[str] = []
        self.shape = shape
        self._values: list[np.ndarray] = []
        for names in finished(folder):
            self.paths += json.loads(names.read_text(encoding="utf-8"))
            self._values.append(np.load(names.with_suffix(".npy"), mmap_mode="r"))
        self._starts = np.cumsum([0, *map(len, self._values)])

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

    @cached_property
    def _held(self) -> Tensor | None:
        """All descriptors, where they are few enough."""
        if len(self) * math.prod(self.shape) > HELD:
            return None
        return torch.from_numpy(np.concatenate(self._values).astype(np.float32))

    def at(self, positions: Tensor) -> Tensor:
        """Descriptors of some pictures (n,), (n, T, P)."""
        if self._held is not None:
            return self._held[positions]
        places = positions.numpy()
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        found = torch.empty(len(places), *self.shape)
        for number in np.unique(numbers):
            here = numbers == number
            some = self._values[number][places[here] - self._starts[number]]
            found[torch.from_numpy(here)] = torch.from_numpy(some).float()
        return found

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(place of the first picture, descriptors (n, T, P)), some at a time."""
        if self._held is not None:
            yield from zip(range(0, len(self), 2048), self._held.split(2048), strict=True)
            return
        for start, values in zip(self._starts, self._values, strict=False):
            for begin in range(0, len(values), 2048):
                yield int(start) + begin, torch.from_numpy(values[begin : begin + 2048].astype(np.float32))


def spread(total: int, wanted: int) -> Tensor:
    """At most so many of `total` places, evenly spaced from the first to the last."""
    # single precision does not tell places beyond sixteen million apart
    return torch.linspace(0, total - 1, min(wanted, total), dtype=torch.float64).round().long()


def finished(folder: Path) -> Iterator[Path]:
    """The files of paths of the shards that are finished."""
    yield from sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9].json"))


def write_shard(stem: Path, values: np.ndarray, paths: list[str]) -> None:
    """Write descriptors (n, T, P) of pictures with these paths."""
    unfinished = stem.with_suffix(".unfinished.npy")
    np.save(unfinished, values)
    unfinished.replace(stem.with_suffix(".npy"))
    write_json(stem.with_suffix(".json"), paths)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value), encoding="utf-8")
    unfinished.replace(path)
