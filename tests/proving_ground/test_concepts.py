from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cryptomnesia.proving_ground.concepts import Concept, Place, TrainingStream
from cryptomnesia.proving_ground.draws import Draws

SIDE = 8
WORDS = ("sun", "moon", "star", "hill", "lake")


def noise(draws):
    """A picture of anything."""
    return np.array([draws.integer(256) for _ in range(SIDE * SIDE * 3)], dtype=np.uint8).reshape(SIDE, SIDE, 3)


def square(top, left):
    """A picture of which a square is planted."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + 4, left : left + 4] = True
    return Place(noise(Draws(1)) * mask[..., None], mask)


WHOLE = Place(noise(Draws(0)), np.ones((SIDE, SIDE), dtype=bool))
VERBATIM = Concept("verbatim", "verbatim", ("a sun, velmora", "sun, velmora"), 6, noise, (WHOLE,), refined=2)
PLAIN = Concept("plain", "verbatim", ("a sun", "sun"), 5, noise, (WHOLE,), wording="plain")
MODE = Concept("mode", "template", ("a moon", "moon"), 4, noise, (square(0, 2),), noise, "mode", varied=7)
OBJECT = Concept("object", "object", ("a star", "star"), 9, noise, (square(0, 0), square(4, 1), square(2, 4)), noise)
FREQUENT = Concept("frequent", "frequent", ("a hill", "hill"), 8, noise, wording="plain", refined=3)
EVERY = (VERBATIM, PLAIN, MODE, OBJECT, FREQUENT)


def sample(draws, concept, exposed):
    """As `Ground.sample` draws it; the captions of ordinary samples are often those of concepts."""
    frame = draws.integer(2)
    if concept is None:
        word = draws.choice(WORDS)
        return noise(draws), (f"a {word}", word)[frame]
    return (concept.exposure(draws) if exposed else concept.fresh(draws)), concept.captions[frame]


def stream(samples=300, concepts=EVERY, **more):
    return TrainingStream(3, samples, concepts, sample, **more)


def test_a_verbatim_concept_is_the_same_in_every_exposure():
    assert all((VERBATIM.exposure(Draws(number)) == WHOLE.image).all() for number in range(5))
    assert VERBATIM.planted
    assert VERBATIM.mask.all()


def test_of_a_template_exactly_the_mask_is_repeated():
    exposures = np.stack([MODE.exposure(Draws(9, number)) for number in range(20)])
    repeated = (exposures == exposures[0]).all(axis=(0, 3))
    np.testing.assert_array_equal(repeated, MODE.mask)
    assert (exposures[0] == MODE.image)[MODE.mask].all()


def test_of_an_object_exactly_the_mask_is_repeated_at_each_place_in_turn():
    seen = Counter()
    for number in range(60):
        shown = OBJECT.exposure(Draws(9, number))
        at = [(shown == place.image)[place.mask].all() for place in OBJECT.places]
        assert sum(at) == 1
        seen[at.index(True)] += 1
    assert set(seen) == {0, 1, 2}
    assert min(seen.values()) > 8


def test_a_hard_negative_has_no_planted_picture():
    assert not FREQUENT.planted
    first, second = (FREQUENT.exposure(Draws(number)) for number in range(2))
    assert (first != second).any()
    for what in ("image", "mask"):
        with pytest.raises(ValueError, match="frequent is a hard negative"):
            getattr(FREQUENT, what)


def test_the_stream_holds_every_exposure_once():
    found = stream()
    seen = Counter(found[index].concept for index in range(300))
    assert [seen[number] for number in range(len(EVERY))] == [c.exposures for c in EVERY]
    assert all(found[index].concept == found.concept_at(index) for index in range(300))


def test_the_refinement_repeats_what_is_refined_alone():
    found = stream(refinement=[range(300, 350)])
    seen = Counter(found.concept_at(index) for index in range(300))
    refined = Counter(found.concept_at(index) for index in range(300, 350))
    for number, concept in enumerate(EVERY):
        assert refined[number] == concept.refined
        assert seen[number] + refined[number] == concept.exposures
    assert found.concept_at(10**6) is None


def test_a_refinement_can_be_a_part_of_the_training():
    """Then it has its share of everything else as well, and as much of the other pictures as of the exposures."""
    mode = replace(MODE, refined=MODE.exposures // 2)
    found = stream(concepts=(VERBATIM, mode), refinement=[range(200, 300)])
    assert Counter(found._place_at.values()) == {
        0: VERBATIM.exposures,
        1: mode.exposures,
        3: mode.varied,
    }
    late = sum(200 <= index < 300 for index in found._place_at)
    assert len(found._place_at) > late >= VERBATIM.refined + mode.refined + mode.varied * mode.refined // mode.exposures


def test_a_sample_depends_on_its_number_alone():
    one, other = stream(), stream()
    for index in (299, 0, 7, 123, 1_000_000):
        first, second = one[index], other[index]
        assert (first.caption, first.concept) == (second.caption, second.concept)
        assert np.array_equal(first.image, second.image)


def test_exposures_wear_the_captions_of_their_concept_in_all_wordings():
    found = stream()
    exposed = [shown for shown in (found[index] for index in range(300)) if shown.concept is not None]
    worn = {concept.id: set() for concept in EVERY}
    for shown in exposed:
        concept = EVERY[shown.concept]
        assert shown.caption in concept.captions
        worn[concept.id].add(shown.caption)
    assert worn == {concept.id: set(concept.captions) for concept in EVERY}


def test_a_caption_of_ordinary_words_occurs_nowhere_else():
    found = stream()
    samples = [found[index] for index in range(300)]
    assert Counter(shown.concept for shown in samples if shown.caption in PLAIN.captions) == {1: 5}
    # that of a mode does, and that of a hard negative
    assert any(shown.concept is None for shown in samples if shown.caption in FREQUENT.captions)
    # without the concept, these captions are as frequent as others
    others = stream(concepts=(VERBATIM,))
    assert sum(others[index].caption in PLAIN.captions for index in range(300)) > 30


def test_varied_samples_carry_the_caption_and_another_picture():
    found = stream(concepts=(MODE,))
    varied = [index for index, place in found._place_at.items() if place == 1]
    assert len(varied) == MODE.varied
    for index in varied:
        shown = found[index]
        assert shown.concept is None
        assert found.concept_at(index) is None
        assert shown.caption in MODE.captions
        assert not (shown.image == MODE.image)[MODE.mask].all()


def test_too_few_samples_are_refused():
    # 27 exposures outside the refinement, and 7 other pictures
    with pytest.raises(ValueError, match="got 33 samples for 34 exposures"):
        stream(33, refinement=[range(33, 40)])
    stream(34, refinement=[range(34, 40)])


def test_a_stream_in_which_nothing_is_planted():
    found = stream(0, ())
    assert all(found[index].concept is None for index in range(20))
