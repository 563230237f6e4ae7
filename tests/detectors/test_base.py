import pytest
import torch

from cryptomnesia import Detector, UsageError
from cryptomnesia.detectors.base import LEAST_SPREAD, Moments, check_evaluations
from runs import trajectory


def test_moments_are_those_of_every_evaluation():
    moments = Moments.of(torch.tensor([[1.0, 10.0], [3.0, 14.0]]))
    torch.testing.assert_close(moments.mean, torch.tensor([2.0, 12.0]))
    torch.testing.assert_close(moments.std, torch.tensor([2**0.5, 8**0.5]))
    torch.testing.assert_close(moments.z_scores(torch.tensor([[4.0]])), torch.tensor([[2**0.5]]))


def test_a_norm_that_never_varies_gives_finite_scores():
    moments = Moments.of(torch.full((5, 2), 3.0))
    torch.testing.assert_close(moments.std, torch.full((2,), 3.0 * LEAST_SPREAD))
    assert moments.z_scores(torch.tensor([[4.0, 3.0]])).isfinite().all()
    assert Moments.of(torch.zeros(5, 2)).z_scores(torch.ones(1, 2)).isfinite().all()


def test_moments_need_two_images():
    with pytest.raises(UsageError, match="got 1 reference runs; give at least 2, better 150"):
        Moments.of(torch.ones(1, 3))


def test_runs_of_another_length_are_refused():
    with pytest.raises(UsageError, match="the run has 3 evaluations, the calibration 2"):
        check_evaluations(trajectory([[1.0]], planned=3), trajectory([[1.0, 1.0]]))
    check_evaluations(trajectory([[1.0]], planned=2), trajectory([[1.0, 1.0]]))


class Newest(Detector):
    """A detector that defines what it has to, and no more."""

    name = "newest"
    reads = frozenset({"z"})

    def running(self, runs, references):
        return runs.norms["z"]


def test_the_score_is_that_of_the_last_evaluation_of_a_complete_run():
    runs = trajectory([[1.0, 2.0], [3.0, 4.0]])
    assert Newest().score(runs, runs).tolist() == [2.0, 4.0]
    assert Newest().score(trajectory([[1.0, 2.0]], planned=3), runs).isnan().all()
    scores = Newest().score(runs, runs)
    scores += 1
    assert runs.norms["z"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_detector_has_defaults_for_what_it_does_not_define():
    detector = Newest()
    assert detector.norms == detector.signals == ()
    assert detector.earliest(50) == 1
    assert detector.requires == frozenset()
    assert detector.observes == "newest"
    assert detector.describe() == "newest()"
    assert detector.cost(None) == 0
