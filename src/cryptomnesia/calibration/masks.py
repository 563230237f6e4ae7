"""From a map to a mask: which pixels count as memorized, and how unusual that is.

The threshold comes from the maps of reference pictures, which were generated from ordinary captions: at most a share
`fpr` of their pixels lies above it. The share of a new picture above the threshold is compared with the shares of other
reference pictures, which gives a conformal p-value. The reference pictures are split: a third fixes the threshold, and
the rest is the null, so that a new picture and the null are exchangeable. The spatial mean of the map, a detection
score that needs no threshold, is compared with the same null.
"""

import math
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
    """The pixels of B images that count as memorized; of one image without the first dimension.

    Attributes:
        pixels: true where the map is above the threshold, (B, h, w) bool.
        regions: 0 outside, else the number of the connected region, (B, h, w) int.
        fraction: share of the image's pixels that are true, (B,) in [0, 1]; NaN for a map of NaN.
        p_value: conformal p-value of the fraction, (B,).
        mean: spatial mean of the map, the detection score of arXiv:2605.26756, (B,).
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
    """Maps of one localizer for reference pictures.

    Attributes:
        fitting: the maps that fix the threshold, (n, h, w).
        null: the maps that a new map is compared with, (m, h, w).
    """

    fitting: Tensor
    null: Tensor
    # (fpr, smooth, smallest) → threshold and fractions of the null; not passed on to a copy with other maps
    _computed: dict[tuple[float, float, int], tuple[float, Tensor]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def threshold(self, fpr: float = 0.05, smooth: float = 0.0) -> float:
        """The value that at most a share `fpr` of the reference pixels exceeds, under a blur of `smooth` map pixels.

        Raises:
            UsageError: for a rate outside (0, 1), too few reference pixels for the rate, or a negative blur.
        """
        check_mask_settings(fpr, smooth)
        pixels = smoothed(self.fitting, smooth).flatten().sort(descending=True).values
        allowed = int(fpr * len(pixels))
        if allowed < 1:
            raise UsageError(
                f"got the pixel rate {fpr:g} for {len(pixels)} reference pixels; "
                f"give one between {1 / len(pixels):.2g} and 1, or more references"
            )
        return pixels[allowed].item()

    def mask(self, maps: Tensor, *, fpr: float = 0.05, smooth: float = 0.0, smallest: int = 1) -> Mask:
        """Masks of maps (B, h, w).

        Args:
            maps: of the same localizer and model as the reference.
            fpr: share of reference pixels above the threshold, in (0, 1).
            smooth: standard deviation of a Gaussian blur before the threshold, in map pixels; the reference maps get
                the same.
            smallest: regions of fewer map pixels are dropped, here and in the null.

        Raises:
            UsageError: for maps of another size, settings that make no mask, or a rate that the reference does not
                support.
        """
        if maps.shape[1:] != self.null.shape[1:]:
            raise UsageError(
                f"got maps of {tuple(maps.shape[1:])}, the reference has {tuple(self.null.shape[1:])}; "
                "calibrate at the same size"
            )
        check_mask_settings(fpr, smooth, smallest)
        asked = (fpr, smooth, smallest)
        if asked not in self._computed:
            level = self.threshold(fpr, smooth)
            shares = _mean(_regions(smoothed(self.null, smooth) > level, smallest) > 0)
            self._computed[asked] = level, shares
        threshold, null = self._computed[asked]
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
    """The spatial mean of maps (B, h, w), (B,) float64."""
    return maps.flatten(1).double().mean(dim=1)


def check_mask_settings(fpr: float, smooth: float, smallest: int = 1) -> None:
    """Refuse settings with which no mask can be made.

    Raises:
        UsageError: for a rate outside (0, 1), a blur that is negative or not finite, or regions of less than a pixel.
    """
    if not 0 < fpr < 1:
        raise UsageError(f"got the pixel rate {fpr:g}; give one between 0 and 1")
    if not 0 <= smooth < math.inf:
        raise UsageError(f"got a blur of {smooth:g} pixels; give 0 or more")
    if isinstance(smallest, bool) or not isinstance(smallest, int) or smallest < 1:
        raise UsageError(f"got {smallest!r} pixels for the smallest region; give a whole number of at least 1")


def smoothed(maps: Tensor, deviation: float) -> Tensor:
    """Maps (B, h, w) under a Gaussian blur of `deviation` map pixels; border pixels are repeated outwards."""
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
