"""Score differences Δs (arXiv:2605.26756): the surrogate of Δh that needs no derivative.

Δs = Σ_channels (s_c − s̃)² with s = −ε/σ, against the unconditional branch (Δs_∅) or a less-trained checkpoint
(Δs_θ̃). By the Fisher identity it approaches the curvature difference as t → 0, so it is read at the last
step. What it asks of the baseline is the same.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cryptomnesia.localizers.base import AtStep, Watched, finite, over_channels, wide
from cryptomnesia.tracing.trajectory import Place, Step


@dataclass(frozen=True)
class ScoreDifference(AtStep):
    """Δs at evaluation `step`, in 1/(latent unit)²; against the unconditional branch it costs nothing."""

    step: Place = -1
    name: ClassVar[str] = "score-difference"
    differs: ClassVar[bool] = True

    def map(self, watched: Watched) -> Tensor:
        """Δs of every image, (B, h, w), ≥ 0."""
        step = watched.trajectory.step(self.step)
        return over_channels((_apart(watched, step) / step.cond.sigma) ** 2, step.cond_inputs)


@dataclass(frozen=True)
class GuidanceMap(AtStep):
    """‖ε_c − ε̃‖ over channels at evaluation `step`: guidance magnitude, not summed over the picture."""

    step: Place = -1
    name: ClassVar[str] = "guidance-map"
    differs: ClassVar[bool] = True

    def map(self, watched: Watched) -> Tensor:
        """The distance at every place of every image, (B, h, w), ≥ 0, in latent units."""
        step = watched.trajectory.step(self.step)
        return over_channels(_apart(watched, step) ** 2, step.cond_inputs).sqrt()


def _apart(watched: Watched, step: Step) -> Tensor:
    return finite(wide(step.cond.epsilon - watched.against(step).epsilon(step.cond.x, step.t)))
