import pytest
import torch

from cryptomnesia import Stability, UsageError
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
