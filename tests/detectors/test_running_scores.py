"""What a detector of another package returns is checked wherever it is used."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cryptomnesia import Detector, UsageError
from cryptomnesia.calibration.judging import Judge
from runs import calibration_of_runs, trajectory


class Wrong(Detector):
    """Returns what the test gives it, for any runs."""

    name = "wrong"
    reads = frozenset({"z"})

    def __init__(self, change):
        self._change = change

    def running(self, runs, references):
        return self._change(runs.norms["z"])


@pytest.fixture
def calibration():
    values = torch.rand(150, 4, generator=torch.Generator().manual_seed(0))
    return calibration_of_runs(trajectory(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda z: torch.cat([z, z[:, :1]], dim=1),
        lambda z: z.T,
        lambda z: z[:1],
        lambda z: z[:, 0],
        lambda z: z.long(),
        lambda z: np.asarray(z),
        lambda z: None,
    ],
)
def test_scores_of_another_shape_or_type_are_refused_with_the_detectors_name(calibration, change):
    with pytest.raises(UsageError, match=r"the detector wrong returned .*; its `running` has to return"):
        calibration.null(Wrong(change))
    # nothing wrong stays behind
    assert calibration.null(Wrong(lambda z: z)).shape == (100, 4)


def test_another_class_that_is_described_alike_has_a_null_of_its_own(calibration):
    first, second = Wrong(lambda z: z), Wrong(lambda z: -z)
    assert first.describe() == second.describe()
    assert torch.equal(calibration.null(first), -calibration.null(second))

    @dataclass
    class Changing(Detector):
        """Is no key of a cache, because its settings may change."""

        factor: float = 1.0
        name = "changing"
        reads = frozenset({"z"})

        def running(self, runs, references):
            return self.factor * runs.norms["z"]

    detector = Changing()
    before = calibration.null(detector)
    detector.factor = 2.0
    assert torch.equal(calibration.null(detector), 2 * before)
    assert Judge(calibration, detector, 0.05).last == 3
