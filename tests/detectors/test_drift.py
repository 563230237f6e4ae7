import math

import pytest
import torch

from cryptomnesia import Drift, UsageError
from cryptomnesia.detectors.drift import STILL
from runs import trajectory

E = math.e
# logarithms 0 and 2, so mean 1 and deviation √2, at the second evaluation; up to the third 0 and 3
REFERENCES = trajectory([[9.0, 1.0, 1.0], [9.0, E**2, E**4]])


def test_the_score_is_the_largest_deviation_of_the_mean_logarithm():
    runs = trajectory([[1.0, E**3, E**2], [float("nan"), E, E**-4]])
    # logarithms 3 and 2 have the means 3 and 2.5, 1 and −4 the means 1 and −1.5; less than usual counts a third
    expected = torch.tensor([[0.0, 2**0.5, 2**0.5], [0.0, 0.0, 3 / 4.5**0.5 / 3]])
    torch.testing.assert_close(Drift().running(runs, REFERENCES), expected)
    torch.testing.assert_close(Drift().score(runs, REFERENCES), expected[:, -1])


def test_the_weight_of_less_movement_is_a_setting():
    runs = trajectory([[1.0, E, E**-4]])
    half = Drift(less=1.5).score(runs, REFERENCES)
    torch.testing.assert_close(half, 2 * Drift().score(runs, REFERENCES))
    assert Drift(less=1.5).describe() == "drift(less=1.5)"


def test_an_estimate_that_stands_still_has_a_finite_score():
    still = trajectory([[0.0, 0.0, 0.0]], x0=[[1.0, 1.0, 1.0]])
    nearly = trajectory([[0.0, STILL / 2, STILL / 3]], x0=[[1.0, 1.0, 1.0]])
    score = Drift().score(still, REFERENCES)
    assert score.isfinite().all()
    torch.testing.assert_close(Drift().score(nearly, REFERENCES), score)


def test_it_cannot_tell_from_a_run_cut_short_and_refuses_one_of_another_length():
    assert Drift().score(trajectory([[1.0, 1.0]], planned=3), REFERENCES).isnan().all()
    with pytest.raises(UsageError, match="the run has 2 evaluations, the calibration 3"):
        Drift().score(trajectory([[1.0, 1.0]]), REFERENCES)


def test_there_is_a_score_from_the_second_evaluation_on():
    assert Drift().earliest(50) == 2
    assert Drift().running(REFERENCES, REFERENCES)[:, 0].eq(0).all()
