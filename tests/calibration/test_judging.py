import math
from dataclasses import replace

import pytest
import torch

from cryptomnesia import Detector, GuidanceMagnitude, UsageError
from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import split
from cryptomnesia.detectors import MapMean
from cryptomnesia.localizers import Collapse
from runs import LONG, calibration_of_runs, trajectory

COUNT = 148
"""References that leave 99 for the null."""


class Largest(Detector):
    """The largest norm z so far, whose null is that of the references as they are."""

    name = "largest"
    reads = frozenset({"z"})

    def running(self, runs, references):
        return runs.norms["z"].cummax(dim=1).values


class Newest(Largest):
    """The newest norm z."""

    name = "newest"

    def running(self, runs, references):
        return runs.norms["z"]


def calibration(*null):
    """A calibration of 3 evaluations whose 99 null runs all have these norms."""
    values = torch.zeros(COUNT, 3)
    values[split(COUNT)[1]] = torch.tensor(null)
    return calibration_of_runs(trajectory(values))


def test_a_judgement_is_the_p_value_at_its_place():
    high, low = Judge(calibration(1.0, 1.0, 1.0), Largest())(trajectory([[0.5, 2.0, 0.5], [0.5, 0.5, 0.5]]))
    assert (high.score, high.p_value, high.flagged, high.first_flagged_step) == (2.0, 0.01, True, 1)
    assert high.reason == "largest 2 has p = 0.01 ≤ 0.01"
    assert (low.score, low.p_value, low.flagged, low.first_flagged_step) == (0.5, 1.0, False, None)
    assert low.reason == "largest 0.5 has p = 1 > 0.01"


@pytest.mark.parametrize(("null", "step"), [((9.0, 9.0, 0.0), 2), ((9.0, 0.0, 0.0), 1), ((0.0, 9.0, 0.0), 0)])
def test_the_first_flagged_step_is_the_first_above_the_references_of_the_same_evaluation(null, step):
    (found,) = Judge(calibration(*null), Newest())(trajectory([[1.0, 1.0, 1.0]]))
    assert found.first_flagged_step == step


def test_a_running_maximum_is_compared_with_that_of_the_references():
    fitted = calibration(0.0, 9.0, 0.0)
    assert Judge(fitted, Largest())(trajectory([[1.0, 1.0, 1.0]]))[0].flagged is False
    (found,) = Judge(fitted, Largest())(trajectory([[1.0, 1.0, 10.0]]))
    assert (found.flagged, found.first_flagged_step) == (True, 0)


def test_an_early_judgement_looks_no_further():
    early = Judge(calibration(1.0, 1.0, 9.0), Largest(), decide_by=2)
    (found,) = early(trajectory([[0.5, 2.0, 99.0]]))
    assert (found.score, found.first_flagged_step) == (2.0, 1)
    assert early(trajectory([[0.5, 2.0]], planned=3))[0] == found


def test_what_cannot_be_judged_says_why():
    judge = Judge(calibration(1.0, 1.0, 1.0), GuidanceMagnitude("last"))
    (short,) = judge(trajectory([[2.0, 2.0]], planned=3))
    (broken,) = judge(trajectory([[2.0, torch.nan, 2.0]]))
    assert "the run ended after 2 of 3 evaluations" in short.reason
    assert "not finite from evaluation 1 on" in broken.reason
    (lacking,) = judge(trajectory([[2.0, 2.0, 2.0]], guidance=[[torch.nan] * 3]))
    assert lacking.reason == "could not tell: guidance-last gives no score; it reads guidance"
    for verdict in (short, broken, lacking):
        assert math.isnan(verdict.p_value)
        assert math.isnan(verdict.score)
        assert not verdict.flagged
        assert not verdict.clean
        assert verdict.first_flagged_step is None
        assert verdict.answer == "could not tell"


def test_latents_that_break_after_the_decision_cannot_be_judged():
    early = Judge(calibration(1.0, 1.0, 1.0), Largest(), decide_by=1)
    (found,) = early(trajectory([[2.0, 2.0, torch.inf]]))
    assert math.isnan(found.score)
    assert "not finite from evaluation 2 on" in found.reason


def test_verdicts_name_image_prompt_detector_and_rate():
    judge = Judge(calibration(1.0, 1.0, 1.0), Largest(), 0.05)
    verdicts = judge(trajectory([[2.0] * 3, [0.5] * 3]), ["a red circle", None])
    assert [(found.image, found.prompt, found.detector, found.fpr) for found in verdicts] == [
        (0, "a red circle", "largest", 0.05),
        (1, None, "largest", 0.05),
    ]
    assert [found.answer for found in verdicts] == ["memorized?", "ordinary"]
    assert all(found.prompt is None for found in judge(trajectory([[2.0] * 3])))


class Late(Largest):
    """There is no score before the second evaluation."""

    name = "late"

    def earliest(self, evaluations):
        return 2

    def running(self, runs, references):
        scores = super().running(runs, references)
        scores[:, 0] = torch.nan
        return scores


def test_nothing_is_flagged_before_there_is_a_score():
    fitted = calibration(0.0, 0.0, 0.0)
    (found,) = Judge(fitted, Late())(trajectory([[1.0, 1.0, 1.0]]))
    assert (found.flagged, found.first_flagged_step) == (True, 1)
    with pytest.raises(UsageError, match="late needs 2 evaluations before there is a score, got 1; decide later"):
        Judge(fitted, Late(), decide_by=1)


def test_what_does_not_fit_is_explained():
    fitted = calibration(1.0, 1.0, 1.0)
    norms = {**fitted.runs.norms, "guidance": torch.full((COUNT, 3), torch.nan)}
    fitted = replace(fitted, runs=replace(fitted.runs, norms=norms))
    for settings, message in [
        ({"detector": GuidanceMagnitude()}, "runs have no guidance, which guidance-mean reads; use another detector"),
        ({"detector": MapMean(Collapse())}, r"not recorded collapse, .* `cryptomnesia calibrate --detector collapse`"),
        ({"fpr": 0.0}, "got the false-positive rate 0; give one between 0 and 1"),
        ({"fpr": 1.0}, "got the false-positive rate 1; give one between 0 and 1"),
        ({"fpr": 0.001}, "needs at least 999 null references, the calibration has 99"),
        ({"decide_by": 0}, r"decide_by=0 of 3 evaluations; give one in 1 … 3"),
        ({"decide_by": 4}, r"decide_by=4 of 3 evaluations; give one in 1 … 3"),
    ]:
        with pytest.raises(UsageError, match=message):
            Judge(fitted, **{"detector": Largest(), **settings})


def test_a_judge_compares_the_prompts_of_a_service_with_the_references():
    fitted = replace(calibration(1.0, 1.0, 1.0), captions=Captions.of([f"a red circle {n}" for n in range(COUNT)]))
    judge = Judge(fitted, Largest())
    assert judge.likeness.seen(LONG[:10], [0.5] * 10) is None
    assert "the prompts have 14 words" in str(judge.likeness.seen(LONG[10:], [0.5] * 15))
