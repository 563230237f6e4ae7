import numpy as np
import pytest

from cryptomnesia import UsageError
from cryptomnesia.proving_ground.planted import TOP_RUNG, plant
from cryptomnesia.proving_ground.replication import THRESHOLD, replicates, tiled_distance
from cryptomnesia.proving_ground.scenes import Draws, Scene

TOP = [concept for concept in plant(0) if concept.planted and concept.exposures == TOP_RUNG]
WHOLE = np.ones((64, 64), dtype=bool)


def test_the_distance_is_the_worst_tiles():
    planted = np.zeros((64, 64, 3))
    image = planted.copy()
    image[:16, :16] = 0.5  # one whole tile
    image[16:32, :8] = 0.5  # half a tile
    assert tiled_distance(image, planted, WHOLE) == pytest.approx(0.5)
    image[:16, :16] = 0.0
    assert tiled_distance(image, planted, WHOLE) == pytest.approx(0.5 / 2**0.5)


def test_only_the_mask_counts():
    planted = np.zeros((64, 64, 3))
    mask = WHOLE.copy()
    mask[:, 32:] = False
    image = planted.copy()
    image[~mask] = 1.0
    assert tiled_distance(image, planted, mask) == 0.0
    mask[:, 32:36] = True  # a quarter of a tile does not make a tile count
    assert tiled_distance(image, planted, mask) == 0.0


def test_bytes_and_floats_are_the_same_picture():
    rng = np.random.default_rng(0)
    planted = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    images = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    assert tiled_distance(images, planted, WHOLE) == pytest.approx(tiled_distance(images / 255, planted / 255, WHOLE))
    assert tiled_distance(images, planted, WHOLE).shape == (5,)


@pytest.mark.parametrize("concept", TOP, ids=lambda concept: concept.id)
def test_its_own_exposures_replicate_and_fresh_drawings_do_not(concept):
    assert replicates(concept.exposure(Draws(3)), concept.image, concept.mask)
    fresh = np.stack([Scene.draw(Draws(4, k), concept.description).pixels() for k in range(10)])
    assert not replicates(fresh, concept.image, concept.mask).any()


def test_a_changed_colour_or_a_missing_object_does_not_replicate():
    concept = TOP[0]
    scene = concept.scene
    missing = Scene(
        concept.description, scene.items[1:], scene.ground_colours, scene.ground_turn, scene.ground_period, 0.0
    )
    assert tiled_distance(missing.pixels(), concept.image, concept.mask) > THRESHOLD


def tile_by_tile(images, planted, mask):
    """The criterion in plain NumPy, one tile after the other."""
    largest = np.zeros(len(images))
    for top in range(0, 64, 16):
        for left in range(0, 64, 16):
            tile = np.s_[..., top : top + 16, left : left + 16, :]
            inside = mask[top : top + 16, left : left + 16]
            if inside.sum() >= 128:
                squared = ((images[tile] - planted[tile]) ** 2).mean(axis=-1) * inside
                largest = np.maximum(largest, squared.sum(axis=(1, 2)) / inside.sum())
    return np.sqrt(largest)


def test_decisions_are_those_of_the_criterion_tile_by_tile():
    """The criterion is frozen: it may be computed in another way, but not decide in another way."""
    rng = np.random.default_rng(0)
    decisions = []
    for number in range(60):
        planted = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        # noise that brings the distances close to the threshold
        noise = rng.normal(0, rng.uniform(26, 34), (20, 64, 64, 3))
        images = np.clip(planted + noise, 0, 255).astype(np.uint8)
        top, left, height, width = rng.integers([0, 0, 24, 24], [30, 30, 64, 64])
        mask = rng.random((64, 64)) < 0.6 if number % 3 == 0 else np.zeros((64, 64), dtype=bool)
        mask[top : top + height, left : left + width] |= number % 3 > 0
        expected = tile_by_tile(images / 255, planted / 255, mask)
        np.testing.assert_allclose(tiled_distance(images, planted, mask), expected, rtol=1e-14)
        np.testing.assert_array_equal(replicates(images, planted, mask), expected <= THRESHOLD)
        decisions += replicates(images / 255, planted, mask).tolist()
        assert decisions[-20:] == (expected <= THRESHOLD).tolist()
    assert 200 < sum(decisions) < 1000


def test_a_mask_in_which_no_tile_counts_is_refused():
    """Every picture would replicate inside of it."""
    mask = np.zeros((64, 64), dtype=bool)
    mask[12:20, 12:20] = True
    with pytest.raises(UsageError, match="less than half of every tile"):
        tiled_distance(np.zeros((64, 64, 3)), np.zeros((64, 64, 3)), mask)


def test_the_distance_of_one_picture_is_a_number():
    planted = np.zeros((64, 64, 3))
    assert isinstance(tiled_distance(planted, planted, WHOLE), float)
    assert tiled_distance(np.zeros((2, 5, 64, 64, 3)), planted, WHOLE).shape == (2, 5)
