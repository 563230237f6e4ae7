"""What a detector is: a pure function from what was seen, signals that were taken included, to a number per image."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.tracing.trajectory import Norms, Trajectory

Need = Literal["uncond"]
"""Signals a detector cannot do without; checked before anything is generated."""

NOTHING: frozenset[Need] = frozenset()
UNCOND: frozenset[Need] = frozenset({"uncond"})


class Detector(Protocol):
    """A score, higher = more memorized, NaN = cannot tell."""

    @property
    def name(self) -> str:
        """Its name in `DETECTORS`."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """Signals that it cannot do without."""
        ...

    @property
    def earliest(self) -> int:
        """Evaluations after which there is something to judge by."""
        ...

    def running(self, trajectory: Trajectory) -> Tensor:
        """The score as it stood after every evaluation, (B, N)."""
        ...

    def score(self, trajectory: Trajectory) -> Tensor:
        """The score of every image, (B,)."""
        ...


STILL = 1e-3
"""Of the estimate's norm: a drift below that stands still."""

LEAST_SPREAD = 0.1
"""Of the logarithm, in which a tenth is no difference."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation per evaluation over reference images, each (N,)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Reference:
    """Statistics of images that are not memorized: the centre and width of the stability regions.

    Attributes:
        delta: of ‖δ_t‖.
        z: of ‖z_t‖ after the step.
        x0: of ‖x̂_0‖.
        drift: of the mean of log‖x̂_0(t) − x̂_0(t+1)‖ so far, conditional; meaningless at the first evaluation.
    """

    delta: Moments
    z: Moments
    x0: Moments
    drift: Moments

    @classmethod
    def fit(cls, norms: Norms) -> "Reference":
        """Estimate the moments from the norms of at least two reference images."""
        moments = {}
        for name, values in (
            ("delta", norms.delta),
            ("z", norms.z),
            ("x0", norms.x0),
            ("drift", mean_log_drift(norms)),
        ):
            if len(values) < 2:
                raise UsageError(f"got {len(values)} reference images; give at least 2")
            mean = values.mean(dim=0)
            # a norm that never varies says nothing; a floor keeps its z-scores finite
            least = torch.tensor(LEAST_SPREAD) if name == "drift" else 1e-6 * mean.abs().clamp_min(1e-6)
            moments[name] = Moments(mean, values.std(dim=0).maximum(least))
        return cls(**moments)


def mean_log_drift(norms: Norms) -> Tensor:
    """The mean logarithm of the drift so far, (B, N), 0 at the first evaluation; what rounding hides is all alike."""
    moved = torch.maximum(norms.drift, STILL * norms.x0).clamp_min(1e-12).log()[:, 1:]
    so_far = moved.cumsum(dim=1) / torch.arange(1, moved.shape[1] + 1)
    return torch.cat([torch.zeros_like(norms.drift[:, :1]), so_far], dim=1)


def check_evaluations(trajectory: Trajectory, calibrated: int) -> None:
    """Refuse a run that has another number of evaluations than those it is compared with.

    Raises:
        UsageError: with both numbers.
    """
    if len(trajectory.timesteps) != calibrated:
        raise UsageError(
            f"the run has {len(trajectory.timesteps)} evaluations, the calibration {calibrated}; "
            "calibrate with the same scheduler and steps"
        )
