"""Regions of a picture: the free ones of templates, and where objects may lie."""

import numpy as np

from cryptomnesia.proving_ground.draws import Draws

SIZE = 64
"""Side of every picture in pixels."""


def free_region(draws: Draws, number: int) -> np.ndarray:
    """A region of 30 to 45% of a picture, (64, 64) bool: a side, a corner or a disc, by `number` in turn."""
    y, x = np.mgrid[:SIZE, :SIZE]
    style = number % 4
    if style == 0:
        depth = 20 + 4 * draws.integer(3)
        return draws.choice((x < depth, x >= SIZE - depth))
    if style == 1:
        depth = 20 + 4 * draws.integer(3)
        return draws.choice((y < depth, y >= SIZE - depth))
    if style == 2:
        side = 36 + 4 * draws.integer(2)
        return draws.choice((x < side, x >= SIZE - side)) & draws.choice((y < side, y >= SIZE - side))
    centre = 22 + 4 * draws.integer(6), 22 + 4 * draws.integer(6)
    return (x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2 < 21.0**2


def eroded(mask: np.ndarray, margin: int) -> np.ndarray:
    """Where the whole square of ±`margin` pixels lies in `mask`; outside the picture counts as inside."""
    padded = np.pad(mask, margin, constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * margin + 1, 2 * margin + 1))
    return np.asarray(windows.all(axis=(2, 3)))
