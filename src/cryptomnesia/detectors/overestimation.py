"""Early overestimation (Kim et al., arXiv:2509.25705): a memorized picture enters the latents too early.

A run from the noise x_T to the picture x_0 should pass x_t ≈ α_t·x_0 + σ_t·x_T. The least-squares weights (a_t, b_t) of
x_t on (x_0, x_T) say how much of either there really is. Under a memorized caption the picture is overestimated early
in the run: a_t is above α_t. The score is the mean of a_t − α_t over some early evaluations. It takes no evaluation of
the network, but is known at the end of the run only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.base import wide
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.tracing.trajectory import Place, Trajectory


@dataclass(frozen=True)
class Overestimation(Measured):
    """Mean of a_t − α_t over the evaluations `early`; no unit.

    Attributes:
        early: the evaluations.
    """

    early: tuple[Place, ...] = (0.1, 0.2, 0.3)

    name = "overestimation"
    summary = "How much more of the final picture there is in the early latents than the noise schedule says."
    source = "arXiv:2509.25705"
    use_when = (
        "You can wait for the end of the run, and want a score that costs nothing and needs no unconditional branch."
    )
    avoid_when = (
        "The scheduler adds noise (DDPM, Euler ancestral): then the latents do not lie between the first noise and the "
        "picture."
    )

    @property
    def places(self) -> tuple[Place, ...]:
        """The first evaluation, the early ones, and the last."""
        return (0, *self.early, -1)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        # not every device has double precision
        noise, picture = (wide(x).flatten(1).cpu().double() for x in (run.step(0).cond.x, run.step(-1).guided.x0))
        both = torch.stack([picture, noise], dim=2)
        found = []
        for place in self.early:
            step = run.step(place)
            weights = _least_squares(both, wide(step.cond.x).flatten(1).cpu().double())
            found.append(weights[:, 0] - step.cond.alpha)
        return torch.stack(found).mean(dim=0)


def _least_squares(columns: Tensor, values: Tensor) -> Tensor:
    """The weights (B, 2) of columns (B, n, 2) that come nearest to values (B, n)."""
    gram = columns.mT @ columns
    (a, b), (_, d) = gram[:, 0].T, gram[:, 1].T
    right = (columns.mT @ values[:, :, None])[:, :, 0]
    # by Cramer's rule: an image whose latents are not finite gives NaN, and no error for the other images
    determinant = a * d - b**2
    first = (right[:, 0] * d - b * right[:, 1]) / determinant
    second = (a * right[:, 1] - b * right[:, 0]) / determinant
    return torch.stack([first, second], dim=1)
