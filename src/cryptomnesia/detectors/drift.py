"""Drift: how far the conditional estimate of the clean latent moves from one evaluation to the next.

A generation commits to its picture when the posterior of x_0 collapses, and while it does so the conditional estimate
x̂_0 moves. With an ordinary caption that is in the middle of the run. With a memorized one a single picture is left
almost from the beginning: x̂_0 moves early, when other captions' estimates hardly do, or, of a perfect memorizer, never.

With z_t the deviation of log‖x̂_0(t) − x̂_0(t+1)‖ from reference generations, in their standard deviations, and
S_t = Σ_{s ≤ t} z_s/√t, the score is max_t max(S_t, −S_t/4). Like the stability score (arXiv:2605.22050) it is a
running maximum, known at every evaluation, but of the model's estimate and not of the solver's latents. Less movement
than usual counts a quarter, because ordinary pictures of plain captions move little as well. Sum and quarter were
chosen on the bundled model's rung below the top one; figures are reported on the top one. This library's own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Need, Reference, log_drift
from cryptomnesia.errors import UsageError
from cryptomnesia.trajectory import Trajectory

_LESS = 4
"""By which movement below the usual counts less than movement above it."""


@dataclass(frozen=True)
class Drift:
    """Largest cumulated deviation of the drift's logarithm from its reference, in standard deviations, ≥ 0."""

    reference: Reference
    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def name(self) -> str:
        """`drift`."""
        return "drift"

    def running(self, trajectory: Trajectory) -> Tensor:
        """The largest so far, (B, N); 0 at the first evaluation, before which there is none."""
        moments = self.reference.drift
        if len(trajectory.timesteps) != len(moments.mean):
            raise UsageError(
                f"the run has {len(trajectory.timesteps)} evaluations, the calibration {len(moments.mean)}; "
                "calibrate with the same scheduler and steps"
            )
        drift = log_drift(trajectory.norms)
        taken = drift.shape[1]
        z = (drift - moments.mean[:taken]) / moments.std[:taken]
        count = torch.arange(taken).clamp_min(1)
        sums = torch.cat([torch.zeros_like(z[:, :1]), z[:, 1:].cumsum(dim=1)], dim=1) / count.sqrt()
        return torch.maximum(sums, -sums / _LESS).cummax(dim=1).values

    def score(self, trajectory: Trajectory) -> Tensor:
        """The largest of every image, (B,); NaN for a run that was cut short."""
        running = self.running(trajectory)
        return running[:, -1] if trajectory.complete else torch.full_like(running[:, -1], torch.nan)
