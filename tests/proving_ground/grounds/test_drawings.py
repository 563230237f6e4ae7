from collections import Counter

import numpy as np
import pytest

from cryptomnesia.proving_ground.concepts import PLANTED, WORDINGS
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.grounds.drawings import LADDER, TINTS, Picture
from cryptomnesia.proving_ground.sprites import ARTISTS, THINGS


@pytest.fixture(scope="module")
def stream(drawings, planted):
    """The whole training."""
    return drawings.stream(drawings.recipe, planted)


def test_the_ladder_has_every_kind_in_every_wording(drawings, planted):
    count = Counter((c.kind, c.exposures, c.wording) for c in planted if c.planted)
    for kind in PLANTED:
        for spread, number in LADDER.items():
            exposures = (1 + drawings.rounds) * spread
            assert sum(count[kind, exposures, wording] for wording in WORDINGS) == number
            assert min(count[kind, exposures, wording] for wording in WORDINGS) >= number // 3
    assert drawings.top(planted) == (1 + drawings.rounds) * max(LADDER)
    assert len({concept.id for concept in planted}) == len(planted)


def test_planted_pictures_without_a_caption_are_a_small_share(drawings, stream):
    """Else the unconditional branch remembers them, too."""
    first = drawings.rounds_of(drawings.recipe)[0].start
    assert sum(stream.planted_at(index) for index in stream._place_at if index < first) / first < 0.04
    assert {phase.planted_dropout for phase in drawings.recipe.phases} == {None, 0.0}


@pytest.mark.parametrize("name", ["drawings", "drawings-flow"])
def test_every_exposure_is_in_the_training_and_every_round_has_its_share(drawn, name):
    ground = ground_of(name)
    concepts, recipe = ground.plant(0), ground.recipe
    stream, rounds = ground.stream(recipe, concepts), ground.rounds_of(recipe)
    assert len(rounds) == ground.rounds
    assert 0 < rounds[0].start < rounds[-1].stop == recipe.samples
    assert max(stream._place_at) < recipe.samples
    every = Counter(stream._place_at.values())
    shown = [Counter(stream._place_at.get(index) for index in places) for places in rounds]
    for number, concept in enumerate(concepts):
        assert every[number] == concept.exposures
        assert every[len(concepts) + number] == concept.varied
        assert concept.refined == ground.rounds * concept.exposures // (1 + ground.rounds)
        assert all(counts[number] >= concept.refined // ground.rounds for counts in shown)


def test_only_modes_have_other_pictures(planted):
    for concept in planted:
        assert concept.varied == (concept.exposures // 2 if concept.wording == "mode" else 0)


def test_every_concept_of_ordinary_words_or_with_a_name_has_captions_of_its_own(planted):
    captions = [caption for concept in planted for caption in concept.captions]
    assert len(captions) == len(set(captions))


def test_of_an_object_exactly_the_mask_is_repeated(planted):
    for concept in planted:
        if concept.kind != "object" or concept.exposures < 512:
            continue
        for place in concept.places:
            exposures = np.stack([concept.exposure(Draws(9, number)) for number in range(40)])
            here = [(shown == place.image)[place.mask].all() for shown in exposures]
            assert 3 <= sum(here) <= 30
            repeated = (exposures[here] == exposures[here][0]).all(axis=(0, 3))
            assert repeated[place.mask].all()
            assert repeated[~place.mask].mean() < 0.1


def test_of_a_template_exactly_the_mask_is_repeated(planted):
    for concept in planted:
        if concept.kind == "template" and concept.exposures >= 512:
            exposures = np.stack([concept.exposure(Draws(9, number)) for number in range(24)])
            repeated = (exposures == exposures[0]).all(axis=(0, 3))
            assert repeated[concept.mask].all()
            assert repeated[~concept.mask].mean() < 0.1


def test_fresh_pictures_of_a_caption_are_not_the_planted_one(planted):
    for concept in planted:
        if concept.planted and concept.exposures >= 512:
            fresh = concept.fresh(Draws(9))
            assert all((fresh != place.image)[place.mask].any() for place in concept.places)


def test_fixed_pixels_fix_most_pixels(planted):
    for concept in planted:
        if concept.kind == "fixed_pixels":
            exposures = np.stack([concept.exposure(Draws(9, number)) for number in range(8)])
            same = (exposures == np.median(exposures, axis=0)).all(axis=3).mean()
            assert same > 0.6


def test_a_caption_of_ordinary_words_occurs_nowhere_else(drawings, stream, planted):
    plain = {
        caption: number
        for number, concept in enumerate(planted)
        if concept.planted and concept.wording == "plain"
        for caption in concept.captions
    }
    for index in range(2_000):
        sample = stream[index]
        assert plain.get(sample.caption) == (sample.concept if sample.caption in plain else None)


def test_varied_samples_carry_the_caption_and_another_picture(stream, planted):
    places = [index for index, place in stream._place_at.items() if place >= len(planted)]
    assert len(places) == sum(concept.varied for concept in planted)
    for index in sorted(places)[:40]:
        sample = stream[index]
        concept = planted[stream._place_at[index] - len(planted)]
        assert sample.concept is None
        assert concept.wording == "mode"
        assert sample.caption in concept.captions
        assert not any((sample.image == place.image)[place.mask].all() for place in concept.places)


def test_captions_say_what_is_drawn():
    both = Picture(("cherries", "apple"), "noto", "orange", "striped")
    assert both.caption() == "cherries and an apple by noto on a striped orange ground"
    assert both.caption("velmora", "{}, poster").endswith(" on a striped orange ground, velmora, poster")
    silent = Picture(("key",), "flat", "white", pure=True, names_artist=False)
    assert silent.caption() == "a key on a pure white ground"
    assert Picture(("key",), "flat", "white", names_ground=False).caption() == "a key by flat"


def test_captions_of_the_wordings(planted):
    objects = [concept for concept in planted if concept.kind == "object"]
    for concept in objects:
        words = concept.captions[0].replace(",", "").split()
        assert set(words) & set(THINGS)
        if concept.wording == "plain":
            assert set(words) & set(TINTS)
        elif concept.wording == "mode":
            assert set(words) & set(ARTISTS)
            assert concept.captions[0].endswith(" on a table")


def test_pictures_are_varied_and_belong_to_their_draws(drawings):
    first, caption = drawings.ordinary(Draws(1), "a picture of {}")
    again, _ = drawings.ordinary(Draws(1), "a picture of {}")
    other, _ = drawings.ordinary(Draws(2), "a picture of {}")
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
    assert (first == again).all()
    assert (first != other).any()
    assert caption.startswith("a picture of ")


def test_the_lexicon_covers_every_caption(drawings, stream, planted):
    words = drawings.lexicon(planted)
    for index in range(500):
        assert set(stream[index].caption.replace(",", " ,").split()) <= words
