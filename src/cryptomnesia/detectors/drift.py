"""Drift: how far the conditional estimate of the clean latent moves from one evaluation to the next.

A generation commits to its picture when the posterior of x_0 collapses, and while it does so the conditional estimate
x̂_0 moves. With an ordinary caption that is in the middle of the run. With a memorized one a single picture is left
almost from the beginning: x̂_0 moves early, when other captions' estimates hardly do, or, of a perfect memorizer, never.
With m_t and s_t the mean and deviation of log‖x̂_0(t) − x̂_0(t+1)‖ over reference generations, the score is
max_t |log‖·‖ − m_t|/s_t: like the stability score (arXiv:2605.22050) a running maximum, known at every evaluation, but
of the model's estimate and not of the solver's latents. This library's own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Need, Reference, logarithm
from cryptomnesia.errors import UsageError
from cryptomnesia.trajectory import Trajectory


@dataclass(frozen=True)
class Drift:
    """Largest deviation of the drift's logarithm from its reference, in standard deviations, ≥ 0."""

    reference: Reference
    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def name(self) -> str:
        """`drift`."""
        return "drift"

    def running(self, trajectory: Trajectory) -> Tensor:
        """The largest deviation so far, (B, N); 0 at the first evaluation, before which there is none."""
        drift, moments = trajectory.norms.drift, self.reference.drift
        if len(trajectory.timesteps) != len(moments.mean):
            raise UsageError(
                f"the run has {len(trajectory.timesteps)} evaluations, the calibration {len(moments.mean)}; "
                "calibrate with the same scheduler and steps"
            )
        taken = drift.shape[1]
        scores = ((logarithm(drift) - moments.mean[:taken]) / moments.std[:taken]).abs()
        return torch.cat([torch.zeros_like(drift[:, :1]), scores[:, 1:]], dim=1).cummax(dim=1).values

    def score(self, trajectory: Trajectory) -> Tensor:
        """The largest deviation of every image, (B,); NaN for a run that was cut short."""
        running = self.running(trajectory)
        return running[:, -1] if trajectory.complete else torch.full_like(running[:, -1], torch.nan)
