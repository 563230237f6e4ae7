"""The tiled distance of two pictures (Carlini et al., 2023, arXiv:2301.13188).

Both pictures are cut into T tiles of P numbers. With x and y the numbers of a tile and w ≥ 0 their weights, the
distance is the largest weighted root mean square difference over the tiles, max over tiles of √(Σ w·(x − y)² / Σ w).
One object that is missing, moved or recoloured makes one tile large, and a background that agrees cannot compensate.
"""

from torch import Tensor

_LEAST = 1e-12
"""Divisor of a tile without weights, whose numerator is 0."""


def cut(pictures: Tensor, across: int) -> Tensor:
    """Cut square pictures (B, C, h, h) into across×across tiles, (B, T, P): row by row, and by channel in a tile."""
    tiles = pictures.unflatten(3, (across, -1)).unflatten(2, (across, -1))
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def counted(weights: Tensor) -> Tensor:
    """Weights (..., T, P) in [0, 1], set to 0 in tiles of which less than half lies in the mask.

    A tile with a few weighted numbers would be near to almost any picture.
    """
    return weights * (weights.mean(dim=-1, keepdim=True) >= 0.5)


def distances_from(described: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Distances (n,) of `others` (n, T, P) from one picture `described` (T, P) under weights (T, P)."""
    totals = weights.sum(dim=1).clamp_min(_LEAST)
    # in place: new memory would first have to be fetched from the system
    difference = others - described
    return (difference.mul_(difference).mul_(weights).sum(dim=2) / totals).amax(dim=1).sqrt()


def distances_between(described: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Distances (B, n) of `others` (n, T, P) from `described` (B, T, P) under weights (B, T, P) or (1, T, P).

    They come from matrix products, which is faster than `distances_from` and a little less exact for pictures that are
    nearly the same.
    """
    described, weights, others = described.transpose(0, 1), weights.transpose(0, 1), others.transpose(0, 1).mT
    totals = weights.sum(dim=2)[..., None].clamp_min(_LEAST)
    first = (weights * described**2).sum(dim=2)[..., None]
    squares = (first - 2 * (weights * described) @ others + weights @ others**2) / totals
    return squares.clamp_min(0).amax(dim=0).sqrt()
