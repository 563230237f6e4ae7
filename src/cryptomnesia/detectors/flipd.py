"""FLIPD (Kamkari et al., 2024; Ross et al., ICLR 2025): how few directions are left to the generated picture.

The local intrinsic dimension of the model's density at a picture x_0 is estimated by D + σ²·(tr ∇s + ‖s‖²) at a point
α·x_0 without noise, where s = −ε/σ is the score and D the number of entries: D − σ·tr J_ε + ‖ε‖². A memorized picture
has a small dimension. The score is the negative dimension per entry. The trace is estimated by random probes.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.errors import NotFiniteError
from cryptomnesia.localizers.base import subtractable, wide
from cryptomnesia.localizers.jacobian.diagonal import DiagonalEstimator
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.inputs import input_rows
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory


@dataclass(frozen=True)
class Flipd(Measured):
    """Minus the estimated dimension of the final picture, divided by the number of its entries; no unit.

    Attributes:
        level: the evaluation whose noise level the density is smoothed with.
        estimator: how the trace is estimated.
    """

    level: Place = 0.7
    estimator: DiagonalEstimator = field(default_factory=lambda: DiagonalEstimator(probes=8))

    name = "flipd"
    summary = "How few directions the model leaves to the generated picture, as its local intrinsic dimension says."
    source = "arXiv:2411.00113"
    use_when = "You compare with it, or study the dimension of what is generated."
    avoid_when = "Pictures differ in complexity: plain ones have a small dimension too."

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluation of the noise level, and the last one, which gives the picture."""
        return (self.level, -1)

    def cost(self, setup: Setup) -> float:
        """One evaluation of the conditional branch for every probe and one more, half of one of both branches each."""
        return (1 + self.estimator.probes) * (0.5 if setup.guided else 1.0)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        level, last = run.step(self.level).level, run.step(-1)
        x = (level.alpha * wide(last.guided.x0)).to(last.cond.x)

        def epsilon(points: Tensor, rows: Tensor) -> Tensor:
            return denoiser(points, level, input_rows(last.cond_inputs, rows)).epsilon

        def total(diagonal: Tensor) -> Tensor:
            return diagonal.flatten(1).sum(dim=1, keepdim=True)

        entries, found = x[0].numel(), denoiser(x, level, last.cond_inputs).epsilon
        squared = wide(found).flatten(1).square().sum(dim=1)

        def score(rows: list[int]) -> Tensor:
            """Minus the dimension of some of the images, per entry; NaN where the network's output is not finite."""
            chosen = torch.tensor(rows)
            try:
                trace = self.estimator.estimate(
                    lambda points, places: epsilon(points, chosen[places]),
                    x[rows],
                    scale=level.sigma,
                    value=subtractable(last.cond, found[rows]),
                    reduce=total,
                ).value[:, 0]
            except NotFiniteError:
                if len(rows) == 1:
                    return torch.full_like(squared[rows], torch.nan)
                # the other images of the batch have a score all the same
                return torch.cat([score([row]) for row in rows])
            return (level.sigma * trace - squared[rows] - entries) / entries

        return score([*range(len(x))])
