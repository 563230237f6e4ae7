import numpy as np
import pytest

from cryptomnesia import UsageError
from cryptomnesia.proving_ground.concepts import Place
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.grounds.scenes import GROUND, TOP_RUNG
from cryptomnesia.proving_ground.replication import planted_distance, replicates, tiled_distance
from cryptomnesia.proving_ground.scenes import Description, Scene

THRESHOLD = GROUND.threshold
TOP = [concept for concept in GROUND.plant(0) if concept.planted and concept.exposures == TOP_RUNG]
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
    assert replicates(concept.exposure(Draws(3)), concept.places, THRESHOLD)
    fresh = np.stack([concept.fresh(Draws(4, k)) for k in range(10)])
    assert not replicates(fresh, concept.places, THRESHOLD).any()


def test_a_changed_colour_or_a_missing_object_does_not_replicate():
    draws = Draws(5)
    scene = Scene.draw(draws, Description.draw(draws, items=3))
    missing = Scene(
        scene.description, scene.items[1:], scene.ground_colours, scene.ground_turn, scene.ground_period, 0.0
    )
    assert not replicates(missing.pixels(), [Place(scene.pixels(), WHOLE)], THRESHOLD)


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
        np.testing.assert_array_equal(replicates(images, [Place(planted, mask)], THRESHOLD), expected <= THRESHOLD)
        decisions += replicates(images / 255, [Place(planted, mask)], THRESHOLD).tolist()
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


def bar(left, width=10, top=16, height=32):
    """A place of an upright bar of noise, so thin that tiles around its middle line hold less than half of it each."""
    mask = np.zeros((64, 64), dtype=bool)
    mask[top : top + height, left : left + width] = True
    texture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[mask] = texture.reshape(-1, 3)
    return Place(image, mask)


def shown(place):
    """The planted pixels on a grey ground."""
    return np.where(place.mask[..., None], place.image, np.uint8(128))


def test_an_object_is_found_at_each_of_its_places_and_not_elsewhere():
    places = [bar(2), bar(27), bar(51, top=5)]
    for place in places:
        assert planted_distance(shown(place), places) == 0.0
        assert replicates(shown(place), places, THRESHOLD)
    pictures = np.stack([*map(shown, places), shown(bar(15)), shown(bar(27, top=24)), np.zeros((64, 64, 3))])
    assert replicates(pictures / 255, places, THRESHOLD).tolist() == [True] * 3 + [False] * 3


def test_what_lies_around_an_object_does_not_count():
    place = bar(27)
    for ground in (0, 255):
        assert planted_distance(np.where(place.mask[..., None], place.image, np.uint8(ground)), [place] * 2) == 0.0
    changed = shown(place)
    changed[32:44, 27:37] = 128
    assert planted_distance(changed, [place] * 2) > THRESHOLD


def test_the_objects_of_the_drawings_are_found_at_each_place_and_not_elsewhere(planted):
    for concept in planted:
        if concept.kind == "object":
            assert len(concept.places) == 3
            exposures = np.stack([concept.exposure(Draws(9, number)) for number in range(8)])
            assert replicates(exposures, concept.places, THRESHOLD).all()
            grounds = np.stack([concept.background(Draws(9, number)) for number in range(8)])
            assert not replicates(grounds, concept.places, THRESHOLD).any()
            image, mask = concept.places[0]
            moved = [np.roll(pixels, (9, -11), axis=(0, 1)) for pixels in (image, mask)]
            elsewhere = np.where(moved[1][..., None], moved[0], grounds[0])
            assert not replicates(elsewhere, concept.places[:1] * 2, THRESHOLD)
