"""Stability regions (arXiv:2605.22050): a memorized generation leaves the usual range of update norms.

δ_t = z_{t−1} − z_t is the latent update. With μ_t, σ_t the mean and deviation of ‖δ_t‖ over reference
generations, the step score is s_t = |‖δ_t‖ − μ_t|/σ_t and the image's score S = max_t s_t. The
running maximum is a score at every step, so detection is online.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import NOTHING, Reference, check_evaluations
from cryptomnesia.tracing.trajectory import Trajectory


@dataclass(frozen=True)
class Stability:
    """Largest deviation of ‖δ_t‖ from its reference, in standard deviations, ≥ 0."""

    reference: Reference
    needs = NOTHING
    earliest = 1

    @property
    def name(self) -> str:
        """`stability`."""
        return "stability"

    def running(self, trajectory: Trajectory) -> Tensor:
        """Max over s ≤ t of |‖δ_s‖ − μ_s|/σ_s, (B, N)."""
        delta = trajectory.norms.delta
        check_evaluations(trajectory, len(self.reference.delta.mean))
        taken = delta.shape[1]
        scores = ((delta - self.reference.delta.mean[:taken]) / self.reference.delta.std[:taken]).abs()
        return scores.cummax(dim=1).values

    def score(self, trajectory: Trajectory) -> Tensor:
        """S of every image, (B,); NaN for a run that was cut short."""
        running = self.running(trajectory)
        return running[:, -1] if trajectory.complete else torch.full_like(running[:, -1], torch.nan)
