import pytest
import torch

from cryptomnesia import Stability, UsageError
from cryptomnesia.detectors.stability import StabilityFirst
from runs import trajectory

REFERENCES = trajectory([[1.0, 10.0], [3.0, 14.0]])


def test_the_score_is_the_largest_deviation_so_far():
    # means 2 and 12, deviations √2 and 2√2: z-scores (4−2)/√2 = √2 and (10−12)/2√2 = −1/√2
    running = Stability().running(trajectory([[4.0, 10.0], [2.0, 12.0]]), REFERENCES)
    torch.testing.assert_close(running, torch.tensor([[2**0.5, 2**0.5], [0.0, 0.0]]))
    torch.testing.assert_close(Stability().score(trajectory([[2.0, 16.0]]), REFERENCES), torch.tensor([2**0.5]))


def test_it_reads_the_update_alone():
    assert Stability().reads == {"delta"}
    runs = trajectory([[4.0, 10.0]])
    other = trajectory(torch.full((1, 2), torch.nan), delta=[[4.0, 10.0]])
    references = trajectory(torch.full((2, 2), torch.nan), delta=REFERENCES.norms["delta"])
    assert torch.equal(Stability().running(other, references), Stability().running(runs, REFERENCES))


def test_it_cannot_tell_from_a_run_cut_short():
    assert Stability().score(trajectory([[4.0]], planned=2), REFERENCES).isnan().all()


def test_a_run_of_another_length_is_refused():
    with pytest.raises(UsageError, match="the run has 3 evaluations, the calibration 2"):
        Stability().score(trajectory([[1.0, 1.0, 1.0]]), REFERENCES)


def test_what_comes_after_the_first_steps_changes_nothing():
    references = trajectory([[1.0, 10.0, 1.0, 1.0, 1.0], [3.0, 14.0, 3.0, 3.0, 3.0]])
    runs = trajectory([[4.0, 12.0, 9.0, 9.0, 9.0], [2.0, 12.0, 9.0, 9.0, 9.0]])
    # z-scores of the first evaluation: √2 and 0; of the second 0
    for share, evaluations in ((0.2, 1), (0.4, 2), (0.01, 1)):
        method = StabilityFirst(share=share)
        assert method.earliest(5) == evaluations
        torch.testing.assert_close(method.score(runs, references), torch.tensor([2**0.5, 0.0]))
    assert StabilityFirst().earliest(50) == 10
    running = StabilityFirst(share=0.4).running(runs, references)
    torch.testing.assert_close(running, torch.tensor([[2**0.5] * 5, [0.0] * 5]))
    whole = StabilityFirst(share=1.0).running(runs, references)
    assert torch.equal(whole, Stability().running(runs, references))
    early = trajectory([[4.0]], planned=5)
    torch.testing.assert_close(StabilityFirst().running(early, references), torch.tensor([[2**0.5]]))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match="give a share of the run above 0 and up to 1"):
        StabilityFirst(share=share)
