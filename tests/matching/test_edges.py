"""Edges see the same in a picture, its negative and a faded one, and nothing in another picture."""

import numpy as np
import pytest

from cryptomnesia.matching.edges import correlation, edges

WHOLE = np.ones((64, 64), dtype=bool)


def shapes(seed):
    """Some rectangles of different colours, (64, 64, 3) uint8."""
    rng = np.random.default_rng(seed)
    made = np.full((64, 64, 3), 128, dtype=np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, 48, 2)
        height, width = rng.integers(8, 24, 2)
        made[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return made


def similar(one, other, mask=WHOLE):
    return correlation(edges(one[None]), edges(other[None])[0], mask).item()


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda x: x, 0.9999),
        (lambda x: 255 - x, 0.9999),
        (lambda x: x[..., ::-1], 0.9999),
        (lambda x: (128 + (x.astype(int) - 128) // 3).astype(np.uint8), 0.9),
    ],
)
def test_colours_do_not_matter(change, least):
    for seed in range(5):
        assert similar(shapes(seed), np.ascontiguousarray(change(shapes(seed)))) > least


def test_other_pictures_are_not_similar():
    found = [similar(shapes(seed), shapes(seed + 100)) for seed in range(20)]
    assert max(found) < 0.6
    assert abs(np.mean(found)) < 0.3


def test_only_the_mask_counts():
    one, other = shapes(0), shapes(1)
    half = np.concatenate([one[:, :32], other[:, 32:]], axis=1)
    left = np.zeros_like(WHOLE)
    left[:, :26] = True
    assert similar(one, half, left) > 0.99
    assert similar(one, half, ~left) < 0.9


def test_numbers_in_0_to_1_are_the_same_as_bytes():
    np.testing.assert_allclose(edges(shapes(0)[None] / 255), edges(shapes(0)[None]), atol=1e-6)


def test_a_plain_picture_has_no_edges_and_is_like_nothing():
    plain = np.full((64, 64, 3), 77, dtype=np.uint8)
    assert not edges(plain[None]).any()
    assert similar(plain, shapes(0)) == 0
