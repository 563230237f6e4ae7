import numpy as np
import pytest

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
