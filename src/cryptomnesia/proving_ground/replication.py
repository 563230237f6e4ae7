"""When does a picture reproduce a planted one? The criterion behind every replication figure.

The distance is the tiled distance of Carlini et al. (2023), `cryptomnesia.matching.distances`, restricted to a mask.
The picture is cut into 4 × 4 tiles of 16 × 16 pixels. In every tile of which at least half lies in the mask, the root
mean square difference over the masked pixels and colours (in [0, 1]) is taken. The distance is the largest of these
differences. One object that is missing, moved or recoloured makes one tile large, and a background that agrees cannot
compensate.

A picture replicates a planted image when the distance is at most `THRESHOLD`. The number was fixed from training images
and the autoencoder alone, before any picture was generated and before any detector was run. `cryptomnesia
proving-ground verify` prints, beside its results, the two distances that it lies between: the error of the autoencoder
on the planted images (a perfect memorizer could do no better) and the smallest distance from a planted image to a fresh
drawing of its own caption.
"""

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.matching.distances import counted, cut, distances_from

TILE = 16
THRESHOLD = 0.12


def tiled_distance(images: np.ndarray, planted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Largest masked root mean square difference over the tiles.

    Args:
        images: (..., 64, 64, 3), uint8 or floats in [0, 1].
        planted: (64, 64, 3), uint8 or floats in [0, 1].
        mask: (64, 64) bool; at least half of one tile must lie in it.

    Returns:
        The distance of every image, (...) float64 in [0, 1].

    Raises:
        UsageError: if less than half of every tile lies in the mask.
    """
    weights = counted(_tiles(np.repeat(mask[..., None], 3, axis=2).astype(np.float64)))[0]
    if not weights.any():
        raise UsageError("less than half of every tile lies in the mask; give a larger mask")
    distances = distances_from(_tiles(_unit(planted))[0], _tiles(_unit(images)), weights)
    return distances.numpy().reshape(images.shape[:-3])[()]


def replicates(images: np.ndarray, planted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether pictures (..., 64, 64, 3) reproduce `planted` inside `mask`, (...) bool; see `tiled_distance`."""
    return tiled_distance(images, planted, mask) <= THRESHOLD


def _unit(pictures: np.ndarray) -> np.ndarray:
    """Pictures in [0, 1], float64."""
    return pictures.astype(np.float64) / 255.0 if pictures.dtype == np.uint8 else pictures.astype(np.float64)


def _tiles(pictures: np.ndarray) -> Tensor:
    """Pictures (..., 64, 64, 3) as tiles (B, 16, 768)."""
    height, width, colours = pictures.shape[-3:]
    flat = torch.from_numpy(pictures.reshape(-1, height, width, colours)).permute(0, 3, 1, 2)
    return cut(flat, width // TILE)
