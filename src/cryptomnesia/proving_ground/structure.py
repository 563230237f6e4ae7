"""A criterion of replication that recolouring, inverting or fading a picture does not fool: where its edges are.

A correction can make a copy fail the tiled distance (`cryptomnesia.proving_ground.replication`) by changing its
colours, while every object stays in its place. The similarity here is the correlation, over the pixels of a mask, of
the normalised edges of two pictures (`cryptomnesia.matching.edges`).

A picture is a copy by structure when the similarity is at least the ground's cut-off. That is the value which 99.9% of
pairs of a planted picture and another picture of the ground do not reach (benchmarks/structure.py). It was fixed from
pictures that the ground draws, before any mitigation was run on it.
"""

from collections.abc import Sequence

import numpy as np

from cryptomnesia.matching.edges import correlation, edges
from cryptomnesia.proving_ground.concepts import Place


def structural_similarity(images: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    """How similar the edges of pictures are to those of a planted one, at the place where they are most similar.

    Args:
        images: (B, H, W, 3), uint8 or floats in [0, 1].
        places: of the planted picture, with its pixels and its mask.

    Returns:
        (B,) float64 in [-1, 1].
    """
    found = edges(images)
    return np.max([correlation(found, edges(place.image[None])[0], place.mask) for place in places], axis=0)
