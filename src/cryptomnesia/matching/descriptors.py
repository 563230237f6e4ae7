"""Descriptors: what two pictures are compared by.

A descriptor turns a picture into T tiles of P numbers. Two pictures are compared by the tiled distance of their
descriptors (`cryptomnesia.matching.distances`), under weights where only a region is compared.

Every picture is first cropped to its middle square, as the pictures that latent diffusion models are trained on, and
scaled by area (`cryptomnesia.images.square`).
"""

import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cryptomnesia.matching.distances import cut


class Descriptor(Protocol):
    """A method that turns a picture into T tiles of P numbers.

    Attributes:
        name: everything that changes the numbers, in words. An index stores it and refuses every other descriptor.
        side: side of the square pictures that `describe` takes, in pixels.
        shape: (T, P).
    """

    @property
    def name(self) -> str:
        """Everything that changes the numbers, in words."""
        ...

    @property
    def side(self) -> int:
        """Side of the square pictures that `describe` takes, in pixels."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (T, P) of a descriptor: T tiles of P numbers."""
        ...

    def describe(self, pictures: Tensor) -> Tensor:
        """Turn square pictures (B, 3, side, side) in [0, 1] into numbers (B, T, P), float32."""
        ...

    def weights(self, masks: Tensor) -> Tensor:
        """Turn square masks (B, h, h) in [0, 1] into weights (B, T, P) in [0, 1] of the numbers.

        Raises:
            UsageError: if the descriptor's numbers belong to no place in the picture.
        """
        ...

    def contrast(self, described: Tensor, weights: Tensor) -> Tensor:
        """How much is to be seen in pictures (n, T, P) under weights (T, P), (n,), ≥ 0.

        Pictures of low contrast come near to each other by chance.
        """
        ...


@dataclass(frozen=True)
class Tiles:
    """The picture itself at `side`×`side` pixels, cut into `across`×`across` tiles. It needs no download.

    Attributes:
        side: in pixels, a multiple of `across`.
        across: tiles in a row.
    """

    side: int = 32
    across: int = 4

    @classmethod
    def named(cls, name: str) -> "Tiles | None":
        """The tiles whose `name` is this one; None for the name of another descriptor."""
        numbers = re.fullmatch(r"tiles, (\d+) pixels, (\d+) across", name)
        return None if numbers is None else cls(int(numbers[1]), int(numbers[2]))

    @property
    def name(self) -> str:
        """`tiles` with both numbers."""
        return f"tiles, {self.side} pixels, {self.across} across"

    @property
    def shape(self) -> tuple[int, int]:
        """The number of tiles and the numbers of a tile: (across², 3·(side/across)²)."""
        return self.across**2, 3 * (self.side // self.across) ** 2

    def describe(self, pictures: Tensor) -> Tensor:
        """The pixels, (B, T, P) in [0, 1], channel by channel in every tile."""
        return cut(pictures, self.across).float()

    def weights(self, masks: Tensor) -> Tensor:
        """The share of every pixel that lies in the mask, (B, T, P)."""
        scaled = interpolate(masks[:, None].float(), size=(self.side, self.side), mode="area")
        return self.describe(scaled.expand(-1, 3, -1, -1))

    def contrast(self, described: Tensor, weights: Tensor) -> Tensor:
        """Standard deviation of the pixels from their mean colour, (n,) in [0, 0.5]."""
        pixels, shares = (values.unflatten(-1, (3, -1)) for values in (described, weights))
        totals = shares.sum(dim=(0, 2)).clamp_min(1e-12)
        mean, square = (torch.einsum("ntcp,tcp->nc", values, shares) / totals for values in (pixels, pixels**2))
        return (square - mean**2).clamp_min(0).mean(dim=1).sqrt()
