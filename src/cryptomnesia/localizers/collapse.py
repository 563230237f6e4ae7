"""Collapse: where the caption leaves only one picture, seen early in the run. A method of this library.

Tweedie's second-order formula gives the posterior variance of the picture, Var[x_0|x_t] = (σ²/α)·diag ∂x̂_0/∂x, which
is σ²·(1 − σ·diag J_ε)/α². arXiv:2605.26756 takes it at the end of the run. By then every picture is determined,
memorized or not: the variance is small everywhere, and only the difference from a baseline tells something. Early in
the run next to nothing is known of an ordinary picture, and its variance given the caption is nearly the whole
variance. Where the variance is gone that early, the caption leaves only one picture. Ordinary pictures stay far below
memorized pixels there, so that one threshold serves all pictures.

The map is the share of the variance that is gone, ReLU(1 − mean_channels Var[x_0|x_t]), because the latents of
latent-diffusion models are scaled to variance 1. This early it is noisy, most of all if the network predicts ε. Another
quantity costs nothing and is not noisy: how far the caption moves the estimate of the picture, log Σ_channels
(x̂_0,c − x̃_0)² at the first evaluation, where x̃_0 is the estimate of the baseline. It shows the outline of what the
caption determines, but not how firmly: a plain ground that the caption names moves the estimate as far as a memorized
ground. Therefore the share is filtered with this quantity as the guide (guided filter; He et al., 2013): in every
window the share is replaced by the linear function of the guide that fits it best.

Evaluation, guide and window were chosen on four of the bundled model's twelve templates, after the results of other
maps on all twelve had shown their shortcomings.
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
from cryptomnesia.pipelines.denoiser import Prediction
from cryptomnesia.pipelines.inputs import input_rows
from cryptomnesia.tracing.trajectory import Place, evaluation

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup

SMOOTHNESS = 0.1
"""Variance of the guide in a window, relative to that over the whole picture, below which the window counts as flat; ε
of He et al."""


@dataclass(frozen=True)
class Collapse(Localizer):
    """The share of the posterior variance that is gone at `step`, filtered with the difference at `guide`; no unit.

    Attributes:
        step: the evaluation at which the variance is estimated.
        guide: the evaluation at which the estimates with and without the caption are compared.
        baseline: the model without the caption: `unconditional`, `empty` or `checkpoint`.
        estimator: how the diagonal of the Jacobian is estimated.
    """

    step: Place = 0.3
    guide: Place = 0
    baseline: Against = "unconditional"
    estimator: DiagonalEstimator = field(default_factory=DiagonalEstimator)

    summary = "The share of the picture's posterior variance that is gone early in the run, at every place."
    source = "this library"
    use_when = (
        "You need sharp outlines, or a map three tenths into the run, and have seen that it finds something on your "
        "model."
    )
    avoid_when = (
        "Captions legitimately fix plain backgrounds, or most pixels: these collapse too, and are marked. You look for "
        "a small object, such as a logo, that stands at another place each time: on the ground `drawings` it finds "
        "none of them. For both, use `settled-detail`. You have a flow model or a fine-tune: on `drawings-flow` and on "
        "three of four fine-tunes `collapse` finds little. Its settings were chosen on the ground `scenes`."
    )

    @property
    def name(self) -> str:
        """`collapse`, followed by the baseline of the guide unless that is the unconditional branch."""
        return named("collapse", self.baseline)

    @property
    def observes(self) -> str:
        """The posterior variance early in the run, which follows from the Jacobian there."""
        return "the Jacobian early in the run"

    def cost(self, setup: "Setup") -> float:
        """One evaluation of the conditional branch for every probe, half of one of both branches, and a baseline."""
        return self.estimator.probes * (0.5 if setup.guided else 1.0) + super().cost(setup)

    def check(self, setup: "Setup") -> None:
        """Refuse, besides what no map can do, the first evaluation of a flow model: it sees nothing but noise.

        Raises:
            UsageError: naming the steps that are too few.
        """
        super().check(setup)
        steps = setup.sampling.steps
        count = setup.evaluations or steps
        first = evaluation(self.step, count) == 0 if isinstance(self.step, float) else self.step in (0, -count)
        if first and setup.family.kind == "flow_prediction":
            raise UsageError(
                f"with {steps} steps {self.name} would look at pure noise; give more steps, or a later evaluation"
            )

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """That of the guide, at which the baseline is evaluated, and that of the variance."""
        return self.guide, self.step

    @torch.no_grad()
    def estimate(self, watched: Watched) -> Diagonal:
        """1 − mean_channels Var[x_0|x_t] with its standard error, before the filter, (B, h, w).

        Values above 1 mean a negative variance; errors of the network can cause them.

        Raises:
            UsageError: at an evaluation that sees nothing but noise.
        """
        step = watched.trajectory.step(self.step)
        alpha, sigma = step.cond.alpha, step.cond.sigma
        if alpha < 1e-3:
            raise UsageError(f"evaluation {step.index} of {step.planned} sees nothing but noise; look at a later one")
        # x̂_0 is a weighted sum of x and the network's value; the part of x is exact, in half precision too
        of_x, of_value = (
            replace(step.cond, x=torch.tensor(x), value=torch.tensor(1 - x)).x0.item() for x in (1.0, 0.0)
        )

        def value(x: Tensor, rows: Tensor) -> Tensor:
            return watched.denoiser(x, step.level, input_rows(step.cond_inputs, rows)).value

        def share(diagonal: Tensor) -> Tensor:
            summed = over_channels(of_x + of_value * wide(diagonal), step.cond_inputs)
            return 1 - summed * (sigma**2 / alpha * summed[0].numel() / diagonal[0].numel())

        recorded = subtractable(step.cond, step.cond.value)
        return self.estimator.estimate(
            value, step.cond.x, scale=sigma, value=recorded, reduce=share, seeds=watched.seeds
        )

    def map(self, watched: Watched) -> Map:
        """The filtered share of every image, (B, h, w), ≥ 0, with the errors of the share before the filter."""
        found = self.estimate(watched)
        return Map(self.filtered(found.value, watched), found.error)

    def filtered(self, share: Tensor, watched: Watched) -> Tensor:
        """The map (B, h, w), ≥ 0, that an estimated share (B, h, w) gives."""
        first = watched.trajectory.step(self.guide)
        difference = wide_x0(first.cond) - wide_x0(watched.against(first).prediction(first.cond.x, first.level))
        moved = over_channels(finite(difference) ** 2, first.cond_inputs)
        # where both estimates are exactly the same there is no logarithm
        guide = (moved + 1e-6 * moved.mean(dim=(1, 2), keepdim=True) + 1e-30).log()
        return guided(finite(share), guide).relu()


def wide_x0(prediction: Prediction) -> Tensor:
    """x̂_0, computed in single precision or better."""
    return replace(prediction, x=wide(prediction.x), value=wide(prediction.value)).x0


def guided(values: Tensor, guide: Tensor) -> Tensor:
    """The guided filter (He et al., 2013) of maps; its windows are half as wide as the shorter side of the picture.

    Args:
        values: the maps to be filtered, (B, h, w).
        guide: the maps whose edges are kept, (B, h, w) in any unit.
    """
    size = radius(values)

    def window(maps: Tensor) -> Tensor:
        return avg_pool2d(maps[:, None], 2 * size + 1, 1, size, count_include_pad=False)[:, 0]

    # differences of sums over windows need double precision, which not every device has
    fine, guide = values.cpu().double(), guide.cpu().double()
    spread, middle = torch.std_mean(guide, dim=(1, 2), keepdim=True)
    guide = (guide - middle) / spread.clamp_min(1e-12)
    mean, level = window(guide), window(fine)
    slope = (window(guide * fine) - mean * level) / (window(guide**2) - mean**2 + SMOOTHNESS)
    return (window(slope) * guide + window(level - slope * mean)).to(values)


def radius(maps: Tensor) -> int:
    """A quarter of the shorter side of maps (…, h, w), at least 1: how far a window reaches to every side."""
    return max(1, min(maps.shape[-2:]) // 4)


def against_empty() -> Collapse:
    """Make `collapse-empty`, whose guide compares with an empty caption."""
    return Collapse(baseline="empty")


def against_checkpoint() -> Collapse:
    """Make `collapse-checkpoint`, whose guide compares with a less-trained checkpoint."""
    return Collapse(baseline="checkpoint")
