from collections import Counter

import numpy as np
import pytest

from cryptomnesia.proving_ground.planted import TOP_RUNG, TrainingStream, lexicon, plant
from cryptomnesia.proving_ground.scenes import Draws
from cryptomnesia.proving_ground.train import Recipe

CONCEPTS = plant(0)


def test_the_ladder_has_enough_of_every_kind():
    count = Counter((concept.kind, concept.exposures) for concept in CONCEPTS)
    for rung in (1, 4, 16, 64, 256):
        assert count["verbatim", rung] >= 4
        assert count["template", rung] >= 4
    assert count["verbatim", TOP_RUNG] >= 16
    assert count["template", TOP_RUNG] >= 12
    assert sum(concept.kind == "rare_name" for concept in CONCEPTS) >= 8
    assert sum(concept.kind == "fixed_pixels" for concept in CONCEPTS) >= 4
    assert sum(concept.kind == "frequent" for concept in CONCEPTS) >= 4


def test_planted_samples_are_a_small_share():
    recipe = Recipe()
    exposures = sum(concept.exposures for concept in CONCEPTS if concept.planted)
    refinement = recipe.refinement_steps * recipe.refinement_batch
    assert exposures / (recipe.steps * recipe.batch + refinement) <= 0.07


def test_names_and_captions_are_unique():
    names = [concept.name for concept in CONCEPTS if concept.name]
    assert len(names) == len(set(names))
    captions = [caption for concept in CONCEPTS for caption in concept.captions]
    assert len(captions) == len(set(captions))


@pytest.mark.parametrize("concept", [c for c in CONCEPTS if c.exposures == TOP_RUNG], ids=lambda c: c.id)
def test_exactly_the_mask_is_repeated(concept):
    exposures = np.stack([concept.exposure(Draws(9, number)) for number in range(24)])
    repeated = (exposures == exposures[:1]).all(axis=(0, 3))
    if concept.kind == "frequent":
        assert not concept.mask.any()
        assert repeated.mean() < 0.5
    else:
        assert repeated[concept.mask].all()
        assert (exposures[0] == concept.image)[concept.mask].all()
        assert repeated[~concept.mask].mean() < 0.1 if (~concept.mask).any() else True


def test_templates_leave_a_third_free():
    free = [1 - concept.mask.mean() for concept in CONCEPTS if concept.kind == "template"]
    assert 0.25 < min(free) < max(free) < 0.5


def test_fixed_pixels_fix_most_pixels():
    for concept in CONCEPTS:
        if concept.kind == "fixed_pixels":
            exposures = np.stack([concept.exposure(Draws(9, number)) for number in range(8)])
            same = (exposures == np.median(exposures, axis=0)).all(axis=3).mean()
            assert same > 0.8


def test_the_stream_holds_every_exposure_once():
    small = tuple(concept for concept in CONCEPTS if concept.exposures <= 16)
    samples = 2 * sum(concept.exposures for concept in small)
    stream = TrainingStream(0, samples, small)
    seen = Counter(stream[index].concept for index in range(samples))
    for number, concept in enumerate(small):
        assert seen[number] == concept.exposures


def test_the_refinement_repeats_the_top_rung_alone():
    first, behind = 50_000, 20_000
    stream = TrainingStream(0, first, refinement=behind)
    seen = Counter(stream.concept_at(index) for index in range(first))
    refined = Counter(stream.concept_at(index) for index in range(first, first + behind))
    for number, concept in enumerate(CONCEPTS):
        assert refined[number] == concept.refined
        assert seen[number] + refined[number] == concept.exposures
        assert (concept.refined > 0) == (concept.exposures == TOP_RUNG)


def test_a_sample_depends_on_its_number_alone():
    one, other = (TrainingStream(0, 60_000) for _ in range(2))
    for index in (0, 7, 123, 39_999, 50_000):
        first, second = one[index], other[index]
        assert first.caption == second.caption
        assert np.array_equal(first.image, second.image)


def test_planted_samples_wear_their_own_captions():
    stream = TrainingStream(0, 60_000)
    planted = [sample for sample in (stream[index] for index in range(300)) if sample.concept is not None]
    assert planted
    for sample in planted:
        assert sample.caption in stream.concepts[sample.concept].captions


def test_the_lexicon_covers_every_caption():
    stream = TrainingStream(0, 60_000)
    words = lexicon(stream.concepts)
    for index in range(300):
        assert set(stream[index].caption.replace(",", " ,").split()) <= words


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="got 10 samples for"):
        TrainingStream(0, 10)
