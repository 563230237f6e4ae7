from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cryptomnesia import UsageError
from cryptomnesia.proving_ground.descent import Worker
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.grounds.drawings import GROUND as BASE
from cryptomnesia.proving_ground.grounds.drawings_unconditional import GROUND, DrawingsUnconditional
from cryptomnesia.proving_ground.images import write_training_images
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.train import _batch, train


@pytest.fixture(scope="module")
def concepts(drawn):
    return GROUND.plant(0)


@pytest.fixture(scope="module")
def stream(concepts):
    return GROUND.stream(GROUND.recipe, concepts)


def test_planted_are_the_concepts_of_the_drawings_with_exposures_of_both_trainings(concepts, stream, planted):
    counted = Counter(stream._place_at.values())
    assert len({concept.id for concept in concepts}) == len(concepts) == len(planted)
    for number, (concept, base) in enumerate(zip(concepts, planted, strict=True)):
        assert concept.captions == base.captions
        assert concept.planted == base.planted
        if concept.planted:
            assert np.array_equal(concept.image, base.image)
        assert counted[number] == concept.refined == concept.exposures - base.exposures > 0
        assert counted[len(concepts) + number] == (concept.refined // 2 if concept.wording == "mode" else 0)
    assert max(stream._place_at) < GROUND.recipe.samples
    share = sum(map(stream.planted_at, range(GROUND.recipe.samples))) / GROUND.recipe.samples
    assert 0.25 < share < 0.4


def test_ordinary_pictures_are_others_than_those_of_the_base(stream, planted):
    base = BASE.stream(BASE.recipe, planted)
    shown = [index for index in range(40) if stream.concept_at(index) is base.concept_at(index) is None]
    assert shown
    assert all((stream[index].image != base[index].image).any() for index in shown)


def test_half_of_the_planted_pictures_have_no_caption_and_none_has_anothers(stream):
    """What the network reads with planted pictures, over some steps of the training."""
    read = []

    class Reader:
        def inputs(self, batch):
            texts = batch.texts(batch.times(1000), 1000)
            read.extend(zip(batch.captions, texts, batch.set_apart.tolist(), strict=True))

    for step in range(40):
        _batch(Reader(), GROUND.recipe, Worker(0, 1), stream, step)
    planted = [(caption, text) for caption, text, apart in read if apart]
    assert len(planted) > 150
    assert all(text in (caption, "") for caption, text in planted)
    assert np.mean([not text for _, text in planted]) == pytest.approx(0.5, abs=0.1)
    ordinary = [(caption, text) for caption, text, apart in read if not apart]
    assert any(text not in (caption, "") for caption, text in ordinary)


def test_images_hold_every_planted_picture_once(tmp_path, planted):
    write_training_images(GROUND, tmp_path, 0)
    written = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(set(written)) == len(written) == sum(concept.planted for concept in planted)


def test_a_base_of_another_ground_is_refused(tmp_path):
    replace(Manifest.load(ground_of("scenes").bundle), folder=tmp_path).save()
    with pytest.raises(UsageError, match=r"is a model of scenes; give one of drawings"):
        train(GROUND.on(tmp_path), tmp_path / "run", processes=1)
    assert isinstance(GROUND.on(tmp_path), DrawingsUnconditional)
