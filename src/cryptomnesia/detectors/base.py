"""What a detector is: a pure function from what is known of a run to a number per image."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.registry import Method
from cryptomnesia.tracing.trajectory import Norm, Signal, Trajectory

LEAST_SPREAD = 1e-6
"""Smallest standard deviation of a norm over reference runs, relative to its mean: it keeps z-scores finite."""


class Detector(Method, Protocol):
    """A score of memorization: higher is more memorized, NaN is "cannot tell".

    Subclass this protocol: then `name` and `running` are all that a detector has to define.

    Attributes:
        reads: names of the norms and signals that the score is made from. A detector that reads only what a calibration
            or a run stored can be used on it without generating again.
        norms: norms that `watch` has to record for it, beside those that it always does.
        signals: signals that `watch` has to compute for it.
    """

    reads: frozenset[str] = frozenset()
    norms: tuple[Norm, ...] = ()
    signals: tuple[Signal, ...] = ()

    def earliest(self, evaluations: int) -> int:
        """The number of evaluations, of a run of `evaluations`, after which there is a score."""
        return 1

    @abstractmethod
    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score of every image as it was after each evaluation, (B, N).

        Args:
            runs: B runs, perhaps not finished, of N evaluations each.
            references: runs of ordinary prompts in the same set-up. They are other runs than those whose scores the
                p-value is computed from.
        """
        ...

    def score(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score of every image, (B,); NaN for runs that were cut short."""
        running = self.running(runs, references)
        return running[:, -1].clone() if runs.complete else torch.full_like(running[:, -1], torch.nan)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation over reference runs at every evaluation, (N,) both."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor, least: float | Tensor | None = None) -> "Moments":
        """Those of values (n, N).

        Args:
            values: of at least two reference runs.
            least: smallest standard deviation, `LEAST_SPREAD` of the mean by default: a norm that never varies says
                nothing, and must not give infinite scores.

        Raises:
            UsageError: for fewer than two reference runs.
        """
        if len(values) < 2:
            raise UsageError(f"got {len(values)} reference runs; give at least 2, better 150")
        mean = values.mean(dim=0)
        least = LEAST_SPREAD * mean.abs().clamp_min(LEAST_SPREAD) if least is None else torch.as_tensor(least)
        return cls(mean, values.std(dim=0).maximum(least))

    def z_scores(self, values: Tensor) -> Tensor:
        """How many standard deviations values (B, N′ ≤ N) lie above the mean of the same evaluation, (B, N′)."""
        taken = values.shape[1]
        return (values - self.mean[:taken]) / self.std[:taken]


def check_evaluations(runs: Trajectory, references: Trajectory) -> None:
    """Refuse runs that have another number of evaluations than those that they are compared with.

    Raises:
        UsageError: with both numbers.
    """
    if len(runs.timesteps) != len(references.timesteps):
        raise UsageError(
            f"the run has {len(runs.timesteps)} evaluations, the calibration {len(references.timesteps)}; "
            "calibrate with the same scheduler and steps"
        )
