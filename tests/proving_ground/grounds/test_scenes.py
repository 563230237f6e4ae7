import hashlib
from collections import Counter

import numpy as np
import pytest

from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.grounds.scenes import GROUND, LADDER, REFINED, TOP_RUNG
from cryptomnesia.proving_ground.recipe import Phase, Recipe

CONCEPTS = GROUND.plant(0)


@pytest.fixture(scope="module")
def stream():
    """The training of the bundled model."""
    return GROUND.stream(GROUND.recipe, CONCEPTS)


def test_the_stream_is_what_the_bundled_model_was_trained_on(stream):
    digest = hashlib.sha256()
    for index in range(200):
        sample = stream[index]
        digest.update(sample.caption.encode())
        digest.update(sample.image.tobytes())
    assert digest.hexdigest() == "0a6fcab5c8375ee568af6b0dd194c3dfff69d3273405f23614f610684624e363"


def test_the_concepts_are_what_was_planted_in_the_bundled_model():
    digest = hashlib.sha256()
    for concept in CONCEPTS:
        numbers = str(concept.exposures), str(concept.refined)
        digest.update("\n".join((concept.id, concept.kind, *concept.captions, *numbers)).encode())
        digest.update((concept.mask if concept.planted else np.zeros((64, 64), dtype=bool)).tobytes())
        digest.update(concept.exposure(Draws(0, 7)).tobytes())
        if concept.planted:
            digest.update(concept.image.tobytes())
    assert digest.hexdigest() == "abde60c67c4bc576b15f04f3db46edd1fe846f63d1fbd98e1851ba2b0ff6e6e4"


def test_exposures_are_where_they_were_in_the_training_of_the_bundled_model(stream):
    steps = sum(phase.steps * phase.batch for phase in GROUND.recipe.phases)
    places = repr([stream.concept_at(index) for index in range(steps)])
    expected = "5d06d4c7f87d9a2a19b348ea5d1e1d6ed83317dc8a1dde377bd27e19953f54c4"
    assert hashlib.sha256(places.encode()).hexdigest() == expected


def test_the_ladder_has_enough_of_every_kind():
    count = Counter((concept.kind, concept.exposures) for concept in CONCEPTS)
    for rung in (1, 4, 16, 64, 256):
        assert count["verbatim", rung] >= 4
        assert count["template", rung] >= 4
    assert count["verbatim", TOP_RUNG] >= 16
    assert count["template", TOP_RUNG] >= 12
    assert GROUND.top(CONCEPTS) == TOP_RUNG == max(LADDER)
    assert sum(concept.kind == "rare_name" for concept in CONCEPTS) >= 8
    assert sum(concept.kind == "fixed_pixels" for concept in CONCEPTS) >= 4
    assert sum(concept.kind == "frequent" for concept in CONCEPTS) >= 4


def test_planted_samples_are_a_small_share():
    exposures = sum(concept.exposures for concept in CONCEPTS if concept.planted)
    assert exposures / sum(phase.steps * phase.batch for phase in GROUND.recipe.phases) <= 0.07


def test_names_and_captions_are_unique():
    names = [concept.captions[0].rpartition(", ")[2] for concept in CONCEPTS if concept.wording == "named"]
    assert len(names) == len(set(names)) > 60
    assert all(name.isalpha() for name in names)
    assert all(concept.wording == "named" for concept in CONCEPTS if concept.planted)
    captions = [caption for concept in CONCEPTS for caption in concept.captions]
    assert len(captions) == len(set(captions))


@pytest.mark.parametrize("concept", [c for c in CONCEPTS if c.exposures == TOP_RUNG], ids=lambda c: c.id)
def test_exactly_the_mask_is_repeated(concept):
    exposures = np.stack([concept.exposure(Draws(9, number)) for number in range(24)])
    repeated = (exposures == exposures[:1]).all(axis=(0, 3))
    if concept.kind == "frequent":
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


def test_the_last_phase_repeats_the_top_rung_alone(stream):
    first = GROUND.recipe.phases[0].steps * GROUND.recipe.phases[0].batch
    behind = GROUND.recipe.phases[1].steps * GROUND.recipe.phases[1].batch
    seen = Counter(stream.concept_at(index) for index in range(first))
    refined = Counter(stream.concept_at(index) for index in range(first, first + behind))
    for number, concept in enumerate(CONCEPTS):
        assert refined[number] == concept.refined == (REFINED if concept.exposures == TOP_RUNG else 0)
        assert seen[number] + refined[number] == concept.exposures


def test_exposures_fill_all_phases_if_nothing_is_refined():
    few = [concept for concept in CONCEPTS if concept.exposures == 4]
    recipe = Recipe((Phase(10, 2, 1e-3), Phase(10, 4, 1e-3)), kept=(1,))
    found = GROUND.stream(recipe, few)
    assert sum(found.concept_at(index) is not None for index in range(60)) == 4 * len(few) == 32


def test_exposures_wear_their_own_captions(stream):
    planted = [sample for sample in (stream[index] for index in range(300)) if sample.concept is not None]
    assert planted
    for sample in planted:
        assert sample.caption in CONCEPTS[sample.concept].captions


def test_the_lexicon_covers_every_caption(stream):
    words = GROUND.lexicon(CONCEPTS)
    for index in range(300):
        assert set(stream[index].caption.replace(",", " ,").split()) <= words
