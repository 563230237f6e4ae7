"""Drift: how far the conditional estimate of the clean latent moves from one evaluation to the next.

A generation commits to its picture when the posterior of x_0 collapses, and while it does so the conditional estimate
x̂_0 moves. With an ordinary caption that is in the middle of the run. With a memorized one a single picture is left
almost from the beginning: x̂_0 moves early, when other captions' estimates hardly do, or, of a perfect memorizer, never.

With u_t the deviation of the mean of log‖x̂_0(s) − x̂_0(s+1)‖ up to t from that of reference generations, in their
standard deviations, the score is max_t max(u_t, −u_t/3). Like the stability score (arXiv:2605.22050) it is a running
maximum, known at every evaluation, but of the model's estimate and not of the solver's latents; the mean, because
neighbouring evaluations say nearly the same. Less movement than usual counts a third, because ordinary pictures of
plain captions move little as well. Mean and third were chosen on the bundled model's rung below the top one, which it
knows in part but does not reproduce; figures are reported on the top one. This library's own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import NOTHING, Reference, check_evaluations, mean_log_drift
from cryptomnesia.tracing.trajectory import Trajectory

_LESS = 3
"""By which movement below the usual counts less than movement above it."""


@dataclass(frozen=True)
class Drift:
    """Largest deviation of the mean logarithmic drift from its reference, in standard deviations, ≥ 0."""

    reference: Reference
    needs = NOTHING
    earliest = 2

    @property
    def name(self) -> str:
        """`drift`."""
        return "drift"

    def running(self, trajectory: Trajectory) -> Tensor:
        """The largest so far, (B, N); 0 at the first evaluation, before which there is none."""
        moments = self.reference.drift
        check_evaluations(trajectory, len(moments.mean))
        drift = mean_log_drift(trajectory.norms)
        taken = drift.shape[1]
        u = (drift - moments.mean[:taken]) / moments.std[:taken]
        u[:, 0] = 0
        return torch.maximum(u, -u / _LESS).cummax(dim=1).values

    def score(self, trajectory: Trajectory) -> Tensor:
        """The largest of every image, (B,); NaN for a run that was cut short."""
        running = self.running(trajectory)
        return running[:, -1] if trajectory.complete else torch.full_like(running[:, -1], torch.nan)
