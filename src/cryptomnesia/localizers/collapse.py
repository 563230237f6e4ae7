"""Collapse: where the caption leaves the picture no room, read early in the run. This library's own.

Tweedie's second-order formula, Var[x_0|x_t] = (σ²/α)·diag ∂x̂_0/∂x, which is σ²·(1 − σ·diag J_ε)/α², is read by the
paper (arXiv:2605.26756) at the end of the run. There every picture is settled, memorized or not: its posterior variance
is small anywhere, and what is left to see is a difference from a baseline. Early on next to nothing is known of an
ordinary picture, so that its variance given the caption is nearly the whole of it. Where it is gone at once, the
caption has only one picture there. Ordinary pictures are far below memorized pixels, and one threshold serves all.

The map is the share of variance that is gone, ReLU(1 − mean_channels Var[x_0|x_t]): latents of latent-diffusion models
are scaled to variance 1. So early it is noisy, the more so where the network predicts ε. What costs nothing and is not
noisy is how far the caption moves the estimate of the picture, log Σ_channels (x̂_0,c − x̃_0)² at the first evaluation:
it knows the outline of what is fixed, but not whether it is (a plain ground that the caption names moves it as far as
a memorized one). So the share is filtered with that as its guide (He et al., 2013): in every window it is replaced by
the linear function of the guide that fits it best.

Evaluation, guide and window were chosen on four of the bundled model's templates, after figures of other maps on all
twelve had shown how those fall short.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import Localizer, Map, Watched, finite, named, over_channels, subtractable, wide
from cryptomnesia.localizers.baseline import Against
from cryptomnesia.localizers.jacobian.diagonal import Diagonal, DiagonalEstimator
from cryptomnesia.pipelines.denoiser import Prediction, input_rows
from cryptomnesia.tracing.trajectory import Place

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup

SMOOTHNESS = 0.1
"""Variance of the guide, in its own over the picture, below which a window counts as flat (ε of He et al.)."""


@dataclass(frozen=True)
class Collapse(Localizer):
    """The share of the posterior variance that is gone at `step`, guided by the difference at `guide`; no unit."""

    step: Place = 0.3
    guide: Place = 0
    baseline: Against = "unconditional"
    estimator: DiagonalEstimator = field(default_factory=DiagonalEstimator)

    summary = "The share of the picture's posterior variance that is gone early in the run, at every place."
    source = "this library"
    use_when = "You need a mask: a region with a threshold that was fixed on other pictures."
    avoid_when = (
        "Captions legitimately fix plain grounds or most pixels: those collapse too, and are marked. On another model than "
        "the one on which it was developed its masks were much worse, so calibrate, and look at the pictures."
    )

    @property
    def name(self) -> str:
        """`collapse`, with the baseline of its guide behind it unless that is the unconditional branch."""
        return named("collapse", self.baseline)

    @property
    def observes(self) -> str:
        """The posterior variance early in the run."""
        return "the Jacobian early in the run"

    def cost(self, setup: "Setup") -> float:
        """One evaluation of the conditional branch per probe, half of one of both, and those of the baseline."""
        return self.estimator.probes * (0.5 if setup.guided else 1.0) + super().cost(setup)

    def check(self, setup: "Setup") -> None:
        """Refuse the first evaluation of a flow model too, which sees nothing but noise.

        Raises:
            UsageError: naming the steps that are too few.
        """
        super().check(setup)
        if setup.family.kind != "flow_prediction":
            return
        # solvers make as many evaluations as steps, or more; what lies beyond is refused when it is reached
        steps = setup.sampling.steps
        share = self.step if isinstance(self.step, float) else self.step / steps
        if self.step == -steps or 0 <= share * steps < 1:
            raise UsageError(
                f"with {steps} steps {self.name} would look at pure noise; give more steps, or a later evaluation"
            )

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """The one that is compared with a baseline, and the one whose variance is taken."""
        return self.guide, self.step

    @torch.no_grad()
    def estimate(self, watched: Watched) -> Diagonal:
        """1 − mean_channels Var[x_0|x_t] with its standard error, before the filter, (B, h, w).

        Errors of the network may take it above 1, where the variance it implies is negative.

        Raises:
            UsageError: at an evaluation without signal.
        """
        step = watched.trajectory.step(self.step)
        alpha, sigma = step.cond.alpha, step.cond.sigma
        if alpha < 1e-3:
            raise UsageError(f"evaluation {step.index} of {step.planned} sees nothing but noise; look at a later one")
        # x̂_0 is a sum of x and the network's value; what x itself contributes is exact, in half precision, too
        of_x, of_value = (
            replace(step.cond, x=torch.tensor(x), value=torch.tensor(1 - x)).x0.item() for x in (1.0, 0.0)
        )

        def value(x: Tensor, rows: Tensor) -> Tensor:
            return watched.denoiser(x, step.t, input_rows(step.cond_inputs, rows)).value

        def share(diagonal: Tensor) -> Tensor:
            summed = over_channels(of_x + of_value * wide(diagonal), step.cond_inputs)
            return 1 - summed * (sigma**2 / alpha * summed[0].numel() / diagonal[0].numel())

        known = subtractable(step.cond, step.cond.value)
        return self.estimator.estimate(value, step.cond.x, scale=sigma, value=known, reduce=share, seeds=watched.seeds)

    def map(self, watched: Watched) -> Map:
        """The filtered share of every image, (B, h, w), ≥ 0; its errors are those of the share before the filter."""
        found = self.estimate(watched)
        return Map(self.filtered(found.value, watched), found.error)

    def filtered(self, share: Tensor, watched: Watched) -> Tensor:
        """The map that an estimated share (B, h, w) gives, likewise."""
        first = watched.trajectory.step(self.guide)
        difference = _x0(first.cond) - _x0(watched.against(first).prediction(first.cond.x, first.t))
        moved = over_channels(finite(difference) ** 2, first.cond_inputs)
        # a baseline that says exactly the same somewhere has no logarithm
        guide = (moved + 1e-6 * moved.mean(dim=(1, 2), keepdim=True) + 1e-30).log()
        return guided(finite(share), guide).relu()


def _x0(prediction: Prediction) -> Tensor:
    """x̂_0, formed in single precision."""
    return replace(prediction, x=wide(prediction.x), value=wide(prediction.value)).x0


def guided(values: Tensor, guide: Tensor) -> Tensor:
    """The guided filter (He et al., 2013) of maps (B, h, w), its windows half as wide as the picture's shorter side.

    Args:
        values: that are filtered.
        guide: whose edges stay, (B, h, w) in any unit.
    """
    radius = max(1, min(values.shape[1:]) // 4)

    def window(of: Tensor) -> Tensor:
        return avg_pool2d(of[:, None], 2 * radius + 1, 1, radius, count_include_pad=False)[:, 0]

    # sums over windows cancel, and not every device has float64
    fine, guide = values.cpu().double(), guide.cpu().double()
    spread, middle = torch.std_mean(guide, dim=(1, 2), keepdim=True)
    guide = (guide - middle) / spread.clamp_min(1e-12)
    mean, level = window(guide), window(fine)
    slope = (window(guide * fine) - mean * level) / (window(guide**2) - mean**2 + SMOOTHNESS)
    return (window(slope) * guide + window(level - slope * mean)).to(values)


def against_empty() -> Collapse:
    """`collapse-empty`."""
    return Collapse(baseline="empty")


def against_checkpoint() -> Collapse:
    """`collapse-checkpoint`."""
    return Collapse(baseline="checkpoint")
