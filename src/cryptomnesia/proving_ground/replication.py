"""When does a picture reproduce a planted one? The criterion behind every replication figure.

The distance is the tiled distance of Carlini et al. (2023), `cryptomnesia.matching.distances`, restricted to a mask.
The picture is cut into 4 × 4 tiles. In every tile of which at least half lies in the mask, the root
mean square difference over the masked pixels and colours (in [0, 1]) is taken. The distance is the largest of these
differences. One object that is missing, moved or recoloured makes one tile large, and a background that agrees cannot
compensate.

A picture replicates a planted image when the distance is at most the ground's threshold. That number was fixed from
training images and the autoencoder alone, before any picture was generated and before any detector was run. It should
lie between two distances, which `cryptomnesia proving-ground verify` prints beside its results: the error of the
autoencoder on the planted images (a perfect memorizer could do no better), and the smallest distance from a planted
image to ordinary pictures and to fresh drawings of its own caption. Planted images for which it does not are named or
left out.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.matching.distances import counted, cut, distances_from
from cryptomnesia.proving_ground.concepts import Place

ACROSS = 4
"""Tiles along a side of a picture."""


def tiled_distance(images: np.ndarray, planted: np.ndarray, mask: np.ndarray, across: int = ACROSS) -> np.ndarray:
    """Largest masked root mean square difference over the tiles.

    Args:
        images: (..., H, W, 3), uint8 or floats in [0, 1].
        planted: (H, W, 3), uint8 or floats in [0, 1].
        mask: (H, W) bool; at least half of one tile must lie in it.
        across: tiles along a side.

    Returns:
        The distance of every image, (...) float64 in [0, 1].

    Raises:
        UsageError: if less than half of every tile lies in the mask.
    """
    weights = counted(_tiles(np.repeat(mask[..., None], 3, axis=2).astype(np.float64), across))[0]
    if not weights.any():
        raise UsageError("less than half of every tile lies in the mask; give a larger mask")
    distances = distances_from(_tiles(_unit(planted), across)[0], _tiles(_unit(images), across), weights)
    return distances.numpy().reshape(images.shape[:-3])[()]


def planted_distance(images: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    """The distance of pictures (..., H, W, 3) from a planted one, at the place where it is smallest, (...) float64.

    A concept with several places is an object, of which the tiles of the whole picture may hold little. So its tiles
    are those of the square, of half the picture's side, that holds most of it.
    """
    return np.min(_distances(images, places), axis=0)


def nearest_place(images: np.ndarray, places: Sequence[Place]) -> Place:
    """The place of a planted picture that pictures (..., H, W, 3) come nearest to."""
    return places[int(np.argmin([distances.min() for distances in _distances(images, places)]))]


def replicates(images: np.ndarray, places: Sequence[Place], threshold: float) -> np.ndarray:
    """Whether pictures (..., H, W, 3) reproduce a planted one at any of its places, (...) bool."""
    return planted_distance(images, places) <= threshold


def _distances(images: np.ndarray, places: Sequence[Place]) -> list[np.ndarray]:
    """The distance of pictures (..., H, W, 3) at every place, each (...) float64."""
    if len(places) == 1:
        return [tiled_distance(images, *places[0])]
    return [tiled_distance(*_around(images, place), ACROSS // 2) for place in places]


def tiles_of(place: Place) -> int:
    """How many tiles of an object's square decide about it: those of which at least half lies in the mask."""
    mask = _around(place.image, place)[2]
    weights = counted(_tiles(np.repeat(mask[..., None], 3, axis=2).astype(np.float64), ACROSS // 2))[0]
    return int(weights.any(dim=-1).sum())


def _around(images: np.ndarray, place: Place) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, planted picture and mask, cut to the square of four tiles that hold most of the mask."""
    (y, x), width = _corner(place.mask), 2 * _tile(place.mask)
    inside = np.s_[..., y : y + width, x : x + width, :]
    return images[inside], place.image[inside], place.mask[y : y + width, x : x + width]


def _tile(mask: np.ndarray) -> int:
    """Side in pixels of a tile of a whole picture."""
    return len(mask) // ACROSS


def _corner(mask: np.ndarray) -> tuple[int, int]:
    """Row and column of that square: of the tiles that count they hold most; of several squares the most central."""
    tile = _tile(mask)
    within = np.lib.stride_tricks.sliding_window_view(mask, (tile, tile)).sum(axis=(2, 3))
    held = np.where(2 * within >= tile**2, within, 0)
    side = mask.shape[0] - 2 * tile + 1
    total = sum(held[y : y + side, x : x + side] for y in (0, tile) for x in (0, tile))
    middle = [(places.min() + places.max() + 1) / 2 - tile for places in np.nonzero(mask)]
    rows, columns = np.mgrid[:side, :side]
    away = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2
    best = np.lexsort((away.ravel(), -np.ravel(total)))[0]
    return int(best) // side, int(best) % side


def _unit(pictures: np.ndarray) -> np.ndarray:
    """Pictures in [0, 1], float64."""
    return pictures.astype(np.float64) / 255.0 if pictures.dtype == np.uint8 else pictures.astype(np.float64)


def _tiles(pictures: np.ndarray, across: int) -> Tensor:
    """Pictures (..., H, W, 3) as tiles (B, across², P)."""
    height, width, colours = pictures.shape[-3:]
    flat = torch.from_numpy(pictures.reshape(-1, height, width, colours)).permute(0, 3, 1, 2)
    return cut(flat, across)
