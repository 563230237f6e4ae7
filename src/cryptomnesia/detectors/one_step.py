"""One-step synthesis (Webster, 2023): a memorized caption gives the same picture from any noise, in one step.

The network is given several draws of pure noise with the caption of the run, at the noise level of the first
evaluation. Its estimates x̂_0 of the picture are compared. The score is −log of their spread, which is the root mean
square distance from their mean relative to the norm of that mean: the higher, the more alike they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.base import wide
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Trajectory

LEAST_SPREAD = 1e-6
"""Smallest relative spread; below it rounding decides."""


@dataclass(frozen=True)
class OneStep(Measured):
    """−log of the relative spread of x̂_0 over draws of noise; no unit.

    Attributes:
        draws: of noise, at least 2; all images get the same ones.
        seed: of the draws.
    """

    draws: int = 4
    seed: int = 0

    name = "one-step"
    summary = "How alike the pictures are that the network sees in several draws of pure noise."
    source = "arXiv:2305.08694"
    use_when = "You judge captions rather than pictures: the score does not depend on the noise of the run."
    avoid_when = "The noise schedule ends dark: then the estimate hardly depends on the noise under any caption."

    @property
    def places(self) -> tuple[int, ...]:
        """The first evaluation, whose noise level the draws have."""
        return (0,)

    def cost(self, setup: Setup) -> float:
        """One evaluation of the conditional branch for every draw, half of one of both branches."""
        return self.draws * (0.5 if setup.guided else 1.0)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        step = run.step(0)
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for _ in range(self.draws):
            noise = step.cond.sigma * torch.randn(step.cond.x.shape[1:], generator=generator)
            x = noise.to(step.cond.x).expand_as(step.cond.x).contiguous()
            found.append(wide(denoiser(x, step.level, step.cond_inputs).x0).flatten(1))
        estimates = torch.stack(found)
        mean = estimates.mean(dim=0)
        spread = (estimates - mean).square().sum(dim=2).mean(dim=0).sqrt()
        # of a perfect memory the estimates are the same
        return -(spread / torch.linalg.vector_norm(mean, dim=1)).clamp_min(LEAST_SPREAD).log()
