"""Millions of pictures for a measurement: variations of thousands of them, made anew whenever they are asked for.

Ten million descriptors are sixty gigabytes. So none are stored: the place of a picture decides which base it is made
from, and how. The first `len(bases)` pictures are the bases themselves. In every other one a rectangle of another base
covers up to half of the picture, which is cropped to 60–100% of its side, mirrored or not, and changed in brightness,
contrast and colour. All this is done at the 32×32 pixels of the descriptor.
"""

import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from cryptomnesia.matching import Tiles
from cryptomnesia.matching.shards import Shards

SIDE = 32
DRAWS = 12
"""Random numbers of a picture."""


class Varied(Shards):
    """Descriptors of `total` pictures, in the place of the shards of an index.

    Attributes:
        paths: the places.
        last: the descriptors that were asked for last.
        made: number of descriptors made until now.
        seconds: what that took.
    """

    def __init__(self, bases: Tensor, total: int) -> None:
        """Vary bases (n, 3, SIDE, SIDE) uint8."""
        self.bases, self.total, self.tiles = bases, total, Tiles(SIDE)
        self.shape, self.readings, self.paths = self.tiles.shape, {}, range(total)  # type: ignore[assignment]
        self.last, self.made, self.seconds = torch.empty(0), 0, 0.0

    def __len__(self) -> int:
        """The number of pictures."""
        return self.total

    @cached_property
    def firsts(self) -> Tensor:
        """All places."""
        return torch.arange(self.total)

    def caption(self, place: int) -> str:
        """No picture has one."""
        return ""

    def at(self, places: Tensor) -> Tensor:
        """Descriptors (n, T, P) of the pictures at `places` (n,)."""
        began = time.perf_counter()
        # so few at a time that they stay in the cache of the processor
        described = torch.cat([self.tiles.describe(self.draw(portion)) for portion in places.split(128)])
        self.last, self.made = described, self.made + len(places)
        self.seconds += time.perf_counter() - began
        return described

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """All descriptors in portions."""
        for start in range(0, self.total, 2048):
            yield start, self.at(torch.arange(start, min(start + 2048, self.total)))

    def draw(self, places: Tensor) -> Tensor:
        """The pictures (n, 3, SIDE, SIDE) in [0, 1] at `places` (n,)."""
        bases = len(self.bases)
        draws = _draws(places)
        first, other = self.bases[places % bases], self.bases[(draws[0] * bases).long()]
        covered = _within(draws[1], draws[2])[:, None, :, None] & _within(draws[3], draws[4])[:, None, None, :]
        pictures = torch.where(covered, other, first).float() / 255
        crop = 0.6 + 0.4 * draws[5]
        affine = torch.zeros(len(places), 2, 3)
        affine[:, 0, 0], affine[:, 1, 1] = torch.where(draws[6] < 0.5, -crop, crop), crop
        affine[:, 0, 2], affine[:, 1, 2] = ((1 - crop) * (2 * draws[row] - 1) for row in (7, 8))
        grid = affine_grid(affine, list(pictures.shape), align_corners=False)
        pictures = grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        contrast, brightness = 0.7 + 0.6 * draws[9], 0.3 * draws[10] - 0.15
        # warmer or colder
        colour = 1 + (0.2 * draws[11] - 0.1)[:, None] * torch.tensor([1.0, 0.0, -1.0])
        factors, added = (contrast[:, None] * colour)[..., None, None], brightness[:, None, None, None]
        pictures = ((pictures - 0.5) * factors + 0.5 + added).clamp_(0, 1)
        return torch.where((places < bases)[:, None, None, None], first.float() / 255, pictures)


def _within(size: Tensor, start: Tensor) -> Tensor:
    """Which of SIDE pixels lie in an interval, (n, SIDE) bool; its size is 20–70%, size and start are in [0, 1)."""
    length = (0.2 + 0.5 * size) * SIDE
    begin = start * (SIDE - length)
    pixels = torch.arange(SIDE)
    return (pixels >= begin[:, None]) & (pixels < (begin + length)[:, None])


def _draws(places: Tensor) -> Tensor:
    """Numbers in [0, 1) that depend on the place alone, (DRAWS, n), by the generator SplitMix64."""
    counters = np.arange(DRAWS, dtype=np.uint64)[:, None] + np.uint64(DRAWS) * places.numpy().astype(np.uint64)
    mixed: Any = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy((mixed >> np.uint64(40)).astype(np.float32) / 2**24)
