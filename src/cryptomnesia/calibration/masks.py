"""From a map to a mask: which pixels are memorized, and how sure it is that any are.

The threshold comes from generations of ordinary captions: every pixel of their maps is a negative, and at most a share `fpr` of them lies above it. How much of a picture then counts as memorized is
compared with how much of other reference pictures does, which gives a conformal p-value. Reference pictures are
split: a third fixes the threshold, the others are the null, so that a new picture and the null are exchangeable.
The map's spatial mean, a detection score that needs no threshold, is compared with the same null.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.statistics import conformal_p_values


@dataclass(frozen=True)
class Mask:
    """What a map says of B images, or of one, without the first dimension.

    Attributes:
        pixels: (B, h, w) bool, true where memorized.
        regions: (B, h, w) int, 0 outside, else the number of the connected region.
        fraction: share of the image that is memorized, (B,).
        p_value: conformal p-value of the fraction, (B,).
        mean: spatial mean of the map, the paper's detection score, (B,).
        mean_p_value: conformal p-value of the mean, (B,); it depends on no threshold.
    """

    pixels: Tensor
    regions: Tensor
    fraction: Tensor
    p_value: Tensor
    mean: Tensor
    mean_p_value: Tensor

    def image(self, row: int) -> "Mask":
        """The mask of one image."""
        return Mask(*(getattr(self, part.name)[row] for part in fields(self)))


@dataclass(frozen=True)
class ReferenceMaps:
    """Maps of one method on reference generations.

    Attributes:
        fitting: those that fix the threshold, (n, h, w).
        null: those that fractions are compared with, (m, h, w).
    """

    fitting: Tensor
    null: Tensor
    _known: dict[tuple[float, float, int], tuple[float, Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def threshold(self, fpr: float = 0.05, smooth: float = 0.0) -> float:
        """The value that at most a share `fpr` of the reference pixels exceeds.

        Raises:
            UsageError: if there are too few reference pixels for that rate.
        """
        pixels = smoothed(self.fitting, smooth).flatten().sort(descending=True).values
        allowed = int(fpr * len(pixels)) if 0 < fpr < 1 else 0
        if allowed < 1:
            raise UsageError(
                f"got the pixel rate {fpr:g} for {len(pixels)} reference pixels; "
                f"give one between {1 / len(pixels):.2g} and 1, or more references"
            )
        return pixels[allowed].item()

    def mask(self, maps: Tensor, *, fpr: float = 0.05, smooth: float = 0.0, smallest: int = 1) -> Mask:
        """Masks of maps (B, h, w).

        Args:
            maps: of the same method and model as the reference.
            fpr: share of reference pixels above the threshold.
            smooth: standard deviation of a Gaussian blur before the threshold, in map pixels; the reference
                gets the same.
            smallest: regions with fewer pixels are dropped, here and in the null.
        """
        if maps.shape[1:] != self.null.shape[1:]:
            raise UsageError(
                f"got maps of {tuple(maps.shape[1:])}, the reference has {tuple(self.null.shape[1:])}; "
                "calibrate at the same size"
            )
        asked = (fpr, smooth, smallest)
        if asked not in self._known:
            level = self.threshold(fpr, smooth)
            shares = _mean(_regions(smoothed(self.null, smooth) > level, smallest) > 0)
            self._known[asked] = level, shares
        threshold, null = self._known[asked]
        regions = _regions(smoothed(maps.cpu(), smooth) > threshold, smallest)
        fraction = _mean(regions > 0)
        mean = _mean(maps.cpu())
        fraction = fraction.masked_fill(mean.isnan(), torch.nan)
        return Mask(
            regions > 0,
            regions,
            fraction,
            conformal_p_values(fraction, null),
            mean,
            conformal_p_values(mean, _mean(self.null)),
        )


def _mean(maps: Tensor) -> Tensor:
    return maps.flatten(1).double().mean(dim=1)


def smoothed(maps: Tensor, deviation: float) -> Tensor:
    """Maps (B, h, w) under a Gaussian blur of `deviation` map pixels, border pixels repeated outwards."""
    if deviation < 0:
        raise UsageError(f"got a blur of {deviation:g} pixels; give 0 or more")
    if deviation == 0:
        return maps
    return torch.from_numpy(ndimage.gaussian_filter(maps.numpy(), (0, deviation, deviation), mode="nearest"))


def _regions(pixels: Tensor, smallest: int) -> Tensor:
    """Connected regions (8 neighbours) of at least `smallest` pixels, numbered from 1 in every image."""
    numbered = torch.zeros(pixels.shape, dtype=torch.int32)
    for row, image in enumerate(pixels.numpy()):
        found: Any = ndimage.label(image, structure=[[1] * 3] * 3)
        labels, count = found
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        kept = np.flatnonzero(sizes[1:] >= smallest) + 1
        renumbered = np.zeros(count + 1, dtype=np.int32)
        renumbered[kept] = np.arange(1, len(kept) + 1)
        numbered[row] = torch.from_numpy(renumbered[labels])
    return numbered
