import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.likeness import FEWEST, MOST, Likeness, scores_unlike, texts_unlike
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from runs import calibration_of_runs, trajectory

LONG = [
    f"portrait of a weathered fisherman who mends nets on a quiet pier at dawn, soft light, fog, number {number}"
    for number in range(40)
]
SHORT = [f"{colour} {shape} picture" for colour in "abcdef" for shape in "ghijkl"]


@pytest.fixture(scope="module")
def ordinary():
    """Ordinary captions of the bundled model."""
    return Manifest.load(BUNDLE).control_captions("calibration", 300)


def calibration_of(captions):
    made = calibration_of_runs(trajectory(torch.rand(len(captions), 2)))
    return replace(made, captions=Captions.of(captions))


def test_halves_of_ordinary_captions_raise_no_alarm(ordinary):
    alarms, generator = 0, np.random.default_rng(0)
    for _ in range(100):
        order = generator.permutation(len(ordinary))
        first, second = ([ordinary[number] for number in half] for half in np.split(order, 2))
        references = Captions.of(first)
        scores, null = generator.random(150), generator.random(150)
        p_values = (1 + (null[None, :] >= scores[:, None]).sum(axis=1)) / 151
        for count in (FEWEST, 150):
            alarms += len(texts_unlike(second[:count], references)) + len(scores_unlike(p_values[:count], 150))
    assert alarms == 0


def test_visibly_different_captions_raise_one(ordinary):
    references = Captions.of(ordinary[:150])
    found = texts_unlike(LONG, references)
    assert found.keys() == {"length", "vocabulary"}
    assert found["length"] == (
        "the prompts have 19 words at the median and the references 13, so p-values may not hold; calibrate on prompts "
        "like these"
    )
    assert found["vocabulary"].startswith("79% of the words of a prompt are in no reference, and 0% of the words of a ")
    assert texts_unlike(SHORT, references).keys() == {"length", "vocabulary"}
    shortened = [" ".join(caption.split()[:4]) for caption in ordinary[150:]]
    assert texts_unlike(shortened, references).keys() == {"length"}
    # a word more is no visible difference, and neither is one new word among many
    assert texts_unlike([f"a {caption}" for caption in ordinary[150:]], references) == {}
    assert texts_unlike([f"{caption}, gigilto" for caption in ordinary[150:]], references) == {}


def test_few_prompts_raise_none_but_for_references_among_them(ordinary):
    references = Captions.of(ordinary[:150])
    assert texts_unlike(LONG[: FEWEST - 1], references) == {}
    # the same prompt again and again is one prompt
    assert texts_unlike([LONG[0]] * 50, references) == {}
    assert texts_unlike([ordinary[0].upper(), "a red circle"], references) == {
        "overlap": "1 of 2 prompts are references of the calibration, so their p-values do not hold; judge other "
        "prompts, or calibrate on others"
    }
    # a model without captions, and a calibration that is not from captions
    assert texts_unlike([""] * 50, Captions.of([""] * 100)) == texts_unlike(LONG, Captions.of([])) == {}


def test_scores_are_compared_with_the_null():
    assert scores_unlike([math.nan] * 50, 100) == scores_unlike([0.01] * (FEWEST - 1), 100) == {}
    found = scores_unlike([0.01] * 30 + [math.nan] * 10, 100)["scores"]
    assert found.startswith(
        "the p-values of 30 prompts are 0.01 at the median, and those of prompts like the references"
    )
    assert "either many prompts are memorized, or they are of another kind than the references" in found
    # scores that are too low are no scores of such prompts either
    assert scores_unlike([0.99] * 30, 100).keys() == {"scores"}
    # one in ten memorized prompts is what an audit looks for
    assert scores_unlike([0.01] * 5 + np.linspace(0.01, 1, 45).tolist(), 100) == {}


def test_a_service_is_told_once(ordinary):
    likeness = Likeness(calibration_of(ordinary[:150]))
    usual = np.linspace(0.01, 1, FEWEST).tolist()
    assert likeness.seen(LONG[: FEWEST - 1], usual[:-1]) is None
    # an image without a caption in words, and a prompt that was there
    assert likeness.seen([None, LONG[0]], [0.5, 0.5]) is None
    told = likeness.seen([LONG[FEWEST]], usual[-1:])
    assert told is not None
    assert told.startswith("the prompts have 19 words")
    assert "; 79% of the words" in told
    assert "p-values of" not in told
    assert all(likeness.seen([f"{text} x"], [0.5]) is None for text in LONG)
    low = [f"{number} fishermen on a pier" for number in range(200)]
    assert "the p-values of" in str(likeness.seen(low, [0.01] * 200))
    assert likeness.seen([f"{text} y" for text in low], [0.01] * 200) is None


def test_a_service_like_the_references_is_told_nothing(ordinary):
    likeness = Likeness(calibration_of(ordinary[:150]))
    generator = np.random.default_rng(0)
    for number in range(150, 300, 3):
        assert likeness.seen(ordinary[number : number + 3], generator.random(3).tolist()) is None


def test_the_newest_prompts_count(ordinary):
    likeness = Likeness(calibration_of(ordinary[:150]))
    usual = [f"{ordinary[150 + number % 150]} {'a' * (number // 150)}" for number in range(MOST)]
    p_values = np.linspace(0.01, 1, MOST).tolist()
    assert likeness.seen(usual, p_values) is None
    later = [f"{text} {number}" for number in range(16) for text in LONG]
    assert "the prompts have 20 words" in str(likeness.seen(later, p_values))
    assert len(likeness._newest) == MOST


def test_images_of_a_model_without_captions_all_count():
    likeness = Likeness(calibration_of([""] * 150))
    assert likeness.seen([None] * 10, [0.01] * 10) is None
    assert "the p-values of 20 prompts are 0.01" in str(likeness.seen([""] * 10, [0.01] * 10))
