"""The structural criterion on drawn pictures."""

import numpy as np
import pytest

from cryptomnesia.proving_ground.concepts import Place
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.structure import structural_similarity


@pytest.fixture(scope="module")
def scenes():
    return ground_of("scenes"), Manifest.load(ground_of("scenes").bundle)


def top(manifest):
    return [entry for entry in manifest.counted if entry.exposures == manifest.top]


def test_no_recolouring_inverting_or_fading_hides_a_copy(scenes):
    ground, manifest = scenes
    for entry in top(manifest)[::4]:
        places = manifest.places(entry)
        picture = places[0].image / 255
        altered = [1 - picture, 0.5 + 0.15 * (picture - 0.5), picture[..., [1, 2, 0]], picture**0.5]
        assert (structural_similarity(np.stack(altered), places) > 0.8).all()
        assert (structural_similarity(np.stack(altered), places) >= ground.structure).all()


def test_pictures_of_different_concepts_are_no_copies(scenes):
    ground, manifest = scenes
    entries = [entry for entry in top(manifest) if entry.kind == "verbatim"]
    pictures = np.stack([manifest.image(entry) for entry in entries])
    found = np.stack([structural_similarity(pictures, manifest.places(entry)) for entry in entries])
    assert np.allclose(np.diag(found), 1)
    off = found[~np.eye(len(entries), dtype=bool)]
    assert (off >= ground.structure).mean() <= 0.01


def test_only_what_lies_in_the_mask_counts_and_the_best_place_is_taken():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 32, 32, 3))
    mask = np.zeros((32, 32), dtype=bool)
    mask[:, :16] = True
    half = first.copy()
    half[:, 21:] = second[:, 21:]
    assert structural_similarity(half[None], [Place(first, mask)])[0] > 0.98
    assert structural_similarity(half[None], [Place(first, ~mask)])[0] < 0.9
    both = structural_similarity(second[None], [Place(first, mask), Place(second, mask)])
    assert both[0] == pytest.approx(1)


def test_bytes_and_floats_are_the_same_and_a_flat_picture_is_no_copy():
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    place = [Place(picture[0], np.ones((32, 32), dtype=bool))]
    assert structural_similarity(picture / 255, place) == pytest.approx(structural_similarity(picture, place))
    assert structural_similarity(np.full((1, 32, 32, 3), 0.5), place)[0] == pytest.approx(0, abs=1e-6)
