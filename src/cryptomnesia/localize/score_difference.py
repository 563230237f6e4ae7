"""Score differences Δs_∅ (arXiv:2605.26756): the surrogate of Δh_∅ that costs nothing.

Δs_∅ = Σ_channels (s_c − s_u)² with s = −ε/σ. By the Fisher identity it approaches the curvature
difference as t → 0, so it is read at the last step. It asks for an unconditional branch that has not
memorized the picture.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cryptomnesia.denoiser import Denoiser
from cryptomnesia.localize.base import both_branches
from cryptomnesia.trajectory import Trajectory


@dataclass(frozen=True)
class ScoreDifference:
    """Δs_∅ at evaluation `step`, in 1/(latent unit)²; no further evaluation of the model."""

    step: int = -1
    name: ClassVar[str] = "score-difference"

    def map(self, trajectory: Trajectory, denoiser: Denoiser | None = None) -> Tensor:
        """Δs_∅ of every image, (B, h, w), ≥ 0."""
        step = both_branches(trajectory.step(self.step))
        assert step.uncond is not None
        return (step.cond.score - step.uncond.score).float().square().sum(dim=1)
