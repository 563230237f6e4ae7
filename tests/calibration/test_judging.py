import numpy as np
import pytest
import torch

from cryptomnesia import Calibration, UsageError
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors.base import Moments, Reference
from cryptomnesia.tracing.trajectory import Norms, Trajectory

UNIT = Moments(torch.zeros(3), torch.ones(3))


def calibration(*null):
    """Of 3 evaluations, with the same null score of stability and last guidance in all of 99 references."""
    scores = torch.tensor(null).expand(99, 3)
    return Calibration({}, Reference(UNIT, UNIT, UNIT, UNIT), {"stability": scores, "guidance-last": scores}, "", 0)


def trajectory(*rows, planned=3):
    """Images by their ‖δ‖, which are also their ‖z‖ and guidance."""
    delta = torch.tensor(rows)
    return Trajectory(
        tuple(range(planned)), Norms(delta, delta, delta, delta, delta), {}, torch.empty(0), delta.shape[1] == planned
    )


def test_a_judgement_is_the_p_value_at_its_place():
    high, low = Judge(calibration(1.0, 1.0, 1.0), "stability")(trajectory([0.5, 2.0, 0.5], [0.5, 0.5, 0.5]))
    assert (high.score, high.p_value, high.flagged, high.crossed) == (2.0, 0.01, True, 1)
    assert high.reason == "stability 2 has p = 0.01 ≤ 0.01"
    assert (low.score, low.p_value, low.flagged, low.crossed) == (0.5, 1.0, False, None)
    assert low.reason == "stability 0.5 has p = 1 > 0.01"


@pytest.mark.parametrize(("null", "crossed"), [((9.0, 9.0, 0.0), 2), ((9.0, 0.0, 0.0), 1), ((0.0, 9.0, 0.0), 0)])
def test_a_score_crosses_where_it_is_first_above_the_references_of_the_same_evaluation(null, crossed):
    for detector in ("stability", "guidance-last"):
        (found,) = Judge(calibration(*null), detector)(trajectory([1.0, 1.0, 1.0]))
        assert found.crossed == crossed


def test_an_early_judgement_looks_no_further():
    early = Judge(calibration(1.0, 1.0, 9.0), "stability", decide_by=2)
    (found,) = early(trajectory([0.5, 2.0, 99.0]))
    assert (found.score, found.crossed) == (2.0, 1)
    assert early(trajectory([0.5, 2.0]))[0] == found


def test_what_cannot_be_judged_says_why():
    judge = Judge(calibration(1.0, 1.0, 1.0), "guidance-last")
    (short,) = judge(trajectory([2.0, 2.0]))
    (broken,) = judge(trajectory([2.0, torch.nan, 2.0]))
    assert "the run ended after 2 of 3 evaluations" in short.reason
    assert "not finite from evaluation 1 on" in broken.reason
    whole = trajectory([2.0, 2.0, 2.0])
    blind = Norms(whole.norms.delta, whole.norms.z, whole.norms.x0, torch.full((1, 3), torch.nan), whole.norms.drift)
    (lacking,) = judge(Trajectory(whole.timesteps, blind, {}, whole.latents, True))
    assert "guidance-last lacks its signal" in lacking.reason
    for each in (short, broken, lacking):
        assert np.isnan(each.p_value)
        assert np.isnan(each.score)
        assert not each.flagged


def test_what_does_not_fit_is_explained():
    fitted = calibration(1.0, 1.0, 1.0)
    for settings, message in [
        ({"detector": "tarot"}, "unknown detector 'tarot'; known are stability, drift"),
        ({"detector": "guidance-mean"}, "knows no guidance-mean; take one of stability, guidance-last$"),
        ({"detector": "collapse"}, "guidance-last, or calibrate with `--detector collapse`$"),
        ({"rate": 0.0}, "got the false-positive rate 0; give one between 0 and 1"),
        ({"rate": 0.001}, "needs at least 999 null references, the calibration has 99"),
        ({"decide_by": 4}, r"decide_by=4 of 3 evaluations; give one in 1 … 3"),
    ]:
        with pytest.raises(UsageError, match=message):
            Judge(fitted, **{"detector": "stability", **settings})
