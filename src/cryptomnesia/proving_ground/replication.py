"""When does a picture reproduce a planted one? The criterion behind every replication figure.

The distance is the tiled ℓ2 distance of Carlini et al. (2023) restricted to a mask: the picture is
cut into 4 × 4 tiles of 16 × 16 pixels; in every tile of which at least half lies in the mask, the
root mean square difference over the masked pixels and colours (in [0, 1]) is taken; the distance is
the largest of them. One object missing, moved or recoloured makes one tile large, while a matching
ground cannot make up for it.

A picture replicates a planted image when the distance is at most `THRESHOLD`. The number was fixed
from training images and the autoencoder alone, before any picture was generated and before any
detector was run: `cryptomnesia proving-ground verify` prints, beside its results, the two distances
it lies between, the autoencoder's own error on the planted images (a perfect memorizer could do no better)
and the smallest distance from a planted image to a fresh drawing of its own caption.
"""

import numpy as np

TILE = 16
THRESHOLD = 0.12


def tiled_distance(images: np.ndarray, planted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Largest masked root-mean-square difference over the tiles.

    Args:
        images: (..., 64, 64, 3), uint8 or floats in [0, 1].
        planted: (64, 64, 3), likewise.
        mask: (64, 64) bool; at least half of one tile must lie in it.

    Returns:
        The distance of every image, (...), in [0, 1].
    """
    squared = (_unit(images) - _unit(planted)) ** 2
    inside = _tiles(mask.astype(np.float64)).sum(axis=(-3, -1))
    total = _tiles(squared.mean(axis=-1) * mask).sum(axis=(-3, -1))
    counted = inside >= TILE * TILE / 2
    return np.sqrt((total[..., counted] / inside[counted]).max(axis=-1))


def replicates(images: np.ndarray, planted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether each of `images` (..., 64, 64, 3) reproduces `planted` inside `mask`, (...) bool."""
    return tiled_distance(images, planted, mask) <= THRESHOLD


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) / 255.0 if image.dtype == np.uint8 else image.astype(np.float64)


def _tiles(values: np.ndarray) -> np.ndarray:
    """(..., 64, 64) as (..., 4, 16, 4, 16)."""
    *batch, height, width = values.shape
    return values.reshape(*batch, height // TILE, TILE, width // TILE, TILE)
