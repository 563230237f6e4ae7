"""Guidance magnitude (Wen et al., ICLR 2024, arXiv:2407.21720): memorized captions pull harder.

The score is the mean over the first n evaluations of ‖ε_c − ε_u‖₂; n = 1 is the paper's first-step
variant, n = all its full one. At the last evaluation alone it ranks images as the spatial mean of Δs does, the score
of the maps of arXiv:2605.26756 (Σ (s_c − s_u)² = ‖ε_c − ε_u‖²/σ², with one σ for all images).

Of networks that predict v or a flow, the difference of the predicted values is taken: at the dark end of a
schedule ε is x, whatever the caption says.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import UNCOND
from cryptomnesia.tracing.trajectory import Trajectory


@dataclass(frozen=True)
class GuidanceMagnitude:
    """Mean ‖Δε_t‖ over the first `steps` evaluations, over all of them when None; ≥ 0, in latent units."""

    steps: int | None = None
    needs = UNCOND
    earliest = 1

    @property
    def name(self) -> str:
        """`guidance-first` for one step, else `guidance-mean`."""
        return "guidance-first" if self.steps == 1 else "guidance-mean"

    def running(self, trajectory: Trajectory) -> Tensor:
        """The mean so far, (B, N); NaN without an unconditional branch."""
        values = trajectory.norms.guidance[:, : self.steps]
        means = values.cumsum(dim=1) / torch.arange(1, values.shape[1] + 1)
        rest = trajectory.norms.guidance.shape[1] - means.shape[1]
        return torch.cat([means, means[:, -1:].expand(-1, rest)], dim=1)

    def score(self, trajectory: Trajectory) -> Tensor:
        """The mean of every image, (B,); NaN where the run was cut short before `steps`."""
        needed = self.steps or len(trajectory.timesteps)
        running = self.running(trajectory)
        enough = trajectory.norms.guidance.shape[1] >= needed
        return running[:, -1] if enough else torch.full_like(running[:, -1], torch.nan)


@dataclass(frozen=True)
class LastGuidance:
    """‖Δε_t‖ of the newest evaluation, ≥ 0, in latent units: the spatial mean of Δs, up to a monotone function."""

    needs = UNCOND
    earliest = 1

    @property
    def name(self) -> str:
        """`guidance-last`."""
        return "guidance-last"

    def running(self, trajectory: Trajectory) -> Tensor:
        """The norm at every evaluation, (B, N); NaN without an unconditional branch."""
        return trajectory.norms.guidance

    def score(self, trajectory: Trajectory) -> Tensor:
        """The norm at the last evaluation of every image, (B,); NaN for a run that was cut short."""
        last = trajectory.norms.guidance[:, -1]
        return last if trajectory.complete else torch.full_like(last, torch.nan)
