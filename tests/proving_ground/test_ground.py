import pytest

from cryptomnesia import UsageError
from cryptomnesia.proving_ground.ground import PURPOSES, ground_of, grounds
from cryptomnesia.proving_ground.manifest import Manifest


def test_grounds_are_found_by_name():
    tuned = [f"{base}-{way}" for base in ("drawings", "scenes") for way in ("full", "lora")]
    assert list(grounds()) == sorted(
        ["drawings", "drawings-flow", "drawings-unconditional", "pixels", "scenes", *tuned]
    )
    for name, ground in grounds().items():
        assert ground_of(name) is ground
        assert ground.name == name
        assert "\n" not in ground.summary
        assert ground.bundle.name == name


def test_an_unknown_name_is_refused_in_one_line():
    with pytest.raises(UsageError) as refused:
        ground_of("tarot")
    assert str(refused.value) == f"no proving ground is called tarot; there are {', '.join(grounds())}"


@pytest.mark.parametrize("name", [name for name, ground in grounds().items() if ground.captioned])
def test_control_captions_are_never_planted_and_differ_by_purpose(name):
    ground = ground_of(name)
    first = ground.control_captions("calibration", 50, ())
    taken = first[:10]
    sets = [ground.control_captions(purpose, 50, taken) for purpose in PURPOSES]
    for captions in sets:
        assert len(set(captions)) == 50
        assert not set(taken) & set(captions)
    assert sets[0][:40] == first[10:]
    assert len(set().union(*sets)) == 150


def test_look_alike_captions_are_drawn_as_the_planted_ones_and_never_planted():
    scenes = ground_of("scenes")
    planted = [concept for concept in scenes.plant(0) if concept.planted]
    taken = {caption for concept in planted for caption in concept.captions}
    first = scenes.look_alike_captions(())["evaluation"]
    found = scenes.look_alike_captions([*taken, first[0]])
    assert list(found) == list(PURPOSES)
    assert found["evaluation"] == first[1:]
    every = [caption for captions in found.values() for caption in captions]
    assert len(every) == len(set(every)) == 3 * len(planted) - 1
    assert not taken & set(every)
    assert {word for caption in every for word in caption.replace(",", " ,").split()} <= scenes.words()
    assert ground_of("pixels").look_alike_captions(()) == {}


def test_too_few_captions_are_an_error_and_no_endless_search(monkeypatch):
    scenes = ground_of("scenes")
    every = [f"{number} stars" for number in range(40)]
    monkeypatch.setattr(type(scenes), "caption", lambda self, draws: draws.choice(every))
    assert len(set(scenes.control_captions("calibration", 30, every[:10]))) == 30
    with pytest.raises(UsageError, match="the ground scenes has 30 captions for calibration, and 31 are needed"):
        scenes.control_captions("calibration", 31, every[:10])


def test_captions_that_another_purpose_would_use_too_are_refused():
    scenes = ground_of("scenes")
    with pytest.raises(UsageError, match="got 501 captions for selection, of which later purposes leave out 500"):
        scenes.control_captions("selection", 501, ())
    with pytest.raises(UsageError, match="unknown purpose 'fun'; known are calibration, selection, evaluation"):
        scenes.control_captions("fun", 3, ())


def test_without_captions_those_of_controls_are_empty():
    assert ground_of("pixels").control_captions("evaluation", 3, ()) == ["", "", ""]


@pytest.mark.parametrize("name", list(grounds()))
def test_control_captions_are_of_known_words(name):
    ground = ground_of(name)
    words = ground.words()
    for caption in ground.control_captions("evaluation", 200, ()):
        assert set(caption.replace(",", " ,").split()) <= words


def test_the_manifest_leaves_out_the_captions_of_its_concepts():
    scenes = ground_of("scenes")
    manifest = Manifest.load(scenes.bundle)
    planted = {caption for entry in manifest.entries for caption in entry.captions}
    captions = manifest.control_captions("evaluation", 50)
    assert captions == scenes.control_captions("evaluation", 50, sorted(planted), manifest.seed)
    assert not planted & set(captions)


@pytest.mark.parametrize("name", list(grounds()))
def test_no_visible_word_is_in_two_groups(name):
    words = [word for group in ground_of(name).visible for word in group]
    assert len(words) == len(set(words))
