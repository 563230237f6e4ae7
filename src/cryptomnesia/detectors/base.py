"""What a detector is: a function from the record of a run to a score per image."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.setup import Method, overridable
from cryptomnesia.tracing.trajectory import Norm, Signal, Trajectory

LEAST_SPREAD = 1e-6
"""Smallest standard deviation of a norm over reference runs, relative to its mean; it keeps z-scores finite."""


class Detector(Method, Protocol):
    """A score of memorization. A higher score means more memorized; NaN means that the detector cannot tell.

    A subclass of this protocol has to define only `name` and `running`.
    """

    @overridable
    def reads(self) -> frozenset[str]:
        """Names of the norms and signals that the score is computed from.

        If a calibration or a run has stored all of them, the detector can be used on it without generating again.
        """
        return frozenset()

    @overridable
    def norms(self) -> tuple[Norm, ...]:
        """The norms that `watch` has to record for the detector, beside those that it always records."""
        return ()

    @overridable
    def signals(self) -> tuple[Signal, ...]:
        """The signals that `watch` has to compute for the detector."""
        return ()

    def earliest(self, evaluations: int) -> int:
        """The number of evaluations, in a run of `evaluations`, after which there is a score."""
        return 1

    def settled(self, evaluations: int) -> int:
        """The number of evaluations, in a run of `evaluations`, after which the score no longer changes.

        A guard need not let a run that is flagged then go on.
        """
        return evaluations

    @abstractmethod
    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score of every image after every evaluation, (B, N).

        Args:
            runs: B runs of N evaluations; they need not be complete.
            references: runs of ordinary prompts in the same set-up. The scores of these runs are not among those that
                a p-value is computed from.
        """
        ...

    def score(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score of every image at the end of its run, (B,); NaN for runs that ended early."""
        running = self.running(runs, references)
        return running[:, -1].clone() if runs.complete else torch.full_like(running[:, -1], torch.nan)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation over reference runs at every evaluation, both (N,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor, least: float | Tensor | None = None) -> "Moments":
        """The moments of values (n, N).

        Args:
            values: one row per reference run, at least two.
            least: smallest standard deviation; by default `LEAST_SPREAD` times the mean. Without it, a norm that is the
                same in all reference runs would give infinite scores.

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
        count = values.shape[1]
        return (values - self.mean[:count]) / self.std[:count]


def counted(share: float, evaluations: int) -> int:
    """How many evaluations the beginning of a run has, at least 1.

    Args:
        share: of the run, above 0 and up to 1.
        evaluations: of the run.

    Raises:
        UsageError: for another share.
    """
    if not 0 < share <= 1:
        raise UsageError(f"got share={share:g}; give a share of the run above 0 and up to 1")
    # without the small number, 0.29 of 100 would be 28
    return max(1, int(share * evaluations + 1e-9))


def running_scores(detector: Detector, runs: Trajectory, references: Trajectory) -> Tensor:
    """The scores of a detector after every evaluation, (B, N) on the CPU; see `Detector.running`.

    Raises:
        UsageError: naming the detector, if it returns anything else than one floating-point number per image and
            evaluation.
    """
    scores: Any = detector.running(runs, references)
    wanted = (len(runs), runs.evaluations)
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or tuple(scores.shape) != wanted:
        got = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(
            f"the detector {detector.name} returned {got}; its `running` has to return floating-point scores of shape "
            f"{wanted}, one per image and evaluation"
        )
    return scores.detach().cpu()


def check_evaluations(runs: Trajectory, references: Trajectory) -> None:
    """Refuse runs that have another number of evaluations than the reference runs.

    Raises:
        UsageError: with both numbers.
    """
    if len(runs.timesteps) != len(references.timesteps):
        raise UsageError(
            f"the run has {len(runs.timesteps)} evaluations, the calibration {len(references.timesteps)}; "
            "calibrate with the same scheduler and steps"
        )
