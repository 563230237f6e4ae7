"""What two pictures are compared by.

A descriptor turns a picture into T tiles of P numbers. The distance of two pictures is the largest root mean
square difference over the tiles: the tiled ℓ2 distance of Carlini et al. (2023, arXiv:2301.13188). One object
that is missing, moved or recoloured makes one tile large, and a matching ground cannot make up for it. With
weights the mean is over the weighted numbers alone, so that two pictures can be compared inside a region.

Pictures are cropped to their middle square, as latent diffusion models are trained on, and scaled by area.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate


class Descriptor(Protocol):
    """A picture as T tiles of P numbers.

    Attributes:
        name: everything that changes its numbers, in words; indexes are bound to it.
        side: of the square pictures that it takes, in pixels.
        shape: (T, P).
    """

    @property
    def name(self) -> str:
        """Everything that changes its numbers."""
        ...

    @property
    def side(self) -> int:
        """Of the pictures that it takes."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(T, P)."""
        ...

    def describe(self, pictures: Tensor) -> Tensor:
        """Square pictures (B, 3, side, side) in [0, 1] as (B, T, P), float32."""
        ...

    def weights(self, masks: Tensor) -> Tensor:
        """Square masks (B, h, h) in [0, 1] as weights (B, T, P) in [0, 1] of the numbers.

        Raises:
            UsageError: of a descriptor whose numbers belong to no place.
        """
        ...

    def contrast(self, described: Tensor, weights: Tensor) -> Tensor:
        """How much pictures (n, T, P) show under weights (T, P), (n,): the less, the nearer others are by chance."""
        ...


@dataclass(frozen=True)
class Tiles:
    """The picture itself at `side`×`side` pixels, cut into `across`×`across` tiles; needs no download.

    Attributes:
        side: in pixels, a multiple of `across`.
        across: tiles in a row.
    """

    side: int = 32
    across: int = 4

    @property
    def name(self) -> str:
        """`tiles` with both numbers."""
        return f"tiles, {self.side} pixels, {self.across} across"

    @property
    def shape(self) -> tuple[int, int]:
        """(across², 3·(side/across)²)."""
        return self.across**2, 3 * (self.side // self.across) ** 2

    def describe(self, pictures: Tensor) -> Tensor:
        """The pixels, (B, T, P) in [0, 1], channel by channel in every tile."""
        tiles = pictures.unflatten(3, (self.across, -1)).unflatten(2, (self.across, -1))
        return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2).float()

    def weights(self, masks: Tensor) -> Tensor:
        """The share of every pixel that lies in the mask, (B, T, P)."""
        scaled = interpolate(masks[:, None].float(), size=(self.side, self.side), mode="area")
        return self.describe(scaled.expand(-1, 3, -1, -1))

    def contrast(self, described: Tensor, weights: Tensor) -> Tensor:
        """Standard deviation of the pixels from their mean colour, (n,)."""
        pixels, shares = (each.unflatten(-1, (3, -1)) for each in (described, weights))
        totals = shares.sum(dim=(0, 2)).clamp_min(1e-12)
        mean, square = (torch.einsum("ntcp,tcp->nc", each, shares) / totals for each in (pixels, pixels**2))
        return (square - mean**2).clamp_min(0).mean(dim=1).sqrt()


def middle(values: Tensor) -> Tensor:
    """The middle square of values (..., h, w)."""
    height, width = values.shape[-2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return values[..., top : top + short, left : left + short]


def square(picture: Image.Image | Tensor, side: int) -> Tensor:
    """The middle square of a picture, PIL or (3, H, W) in [0, 1], scaled to (3, side, side) in [0, 1].

    A camera's rotation is undone, transparency is put on white.
    """
    if isinstance(picture, Tensor):
        array = (picture.detach().clamp(0, 1).permute(1, 2, 0) * 255).round().to("cpu", torch.uint8).numpy()
        picture = Image.fromarray(array)
    # a large JPEG need not be decoded at its full size
    picture.draft("RGB", (2 * side, 2 * side))
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    box = (left, top, left + short, top + short)
    resample = Image.Resampling.BOX if short >= side else Image.Resampling.BILINEAR
    small = picture.resize((side, side), resample, box=box)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
