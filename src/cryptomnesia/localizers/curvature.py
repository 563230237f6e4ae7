"""Curvature differences Δh (arXiv:2605.26756): pixels whose posterior variance is gone, compared with a baseline.

Tweedie's second-order formula, Cov[x_0|x_t] = (σ⁴·∇²log p + σ²·I)/α², says that a coordinate whose posterior variance
is gone has a large −∂²log p/∂x_i². A caption may legitimately determine pixels too. Therefore the curvature of a
baseline that knows the picture less well is subtracted,

    Δh = diag(−∇²log p(x|c)) − diag(−∇²log p̃(x)) = (diag J_ε_c − diag J_ε̃)/σ,   J_ε = ∂ε/∂x.

The baseline is the same model without the caption (Δh_∅), which must not have memorized the picture, or a less-trained
checkpoint with it (Δh_θ̃), which must be early enough. The map is ReLU(Σ_channels Δh). The definition of the paper, with
1/σ, is used; its released code leaves that factor out.

The paper takes the last step. Here the default is the evaluation before the last, because there the maps of the bundled
model agree better with the truth (σ = .14 rather than .04 with 50 steps; `by_step` of benchmarks/curvature.py). Early
in the run, with `step=0.1`, they agree better still, but that is no longer the paper's map; `collapse` was developed
from it.

The diagonal of the difference is estimated as a whole. Both branches get the same probes, so where their Jacobians
agree, their estimation errors agree too and cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryptomnesia.localizers.base import Localizer, Map, Watched, named, over_channels, subtractable
from cryptomnesia.localizers.baseline import Against
from cryptomnesia.localizers.jacobian.diagonal import Diagonal, DiagonalEstimator
from cryptomnesia.localizers.jacobian.products import Function
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.inputs import input_rows, together
from cryptomnesia.tracing.trajectory import Place, Step

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup

OBSERVED = "the Jacobian at the evaluation before the last"
"""What both maps of this file observe."""


@dataclass(frozen=True)
class CurvatureDifference(Localizer):
    """Δh at evaluation `step`, in 1/(latent unit)².

    Attributes:
        step: the evaluation at which the Jacobians are taken.
        baseline: whose curvature is subtracted: `unconditional`, `empty` or `checkpoint`.
        estimator: how the diagonal of the Jacobian is estimated.
    """

    step: Place = -2
    baseline: Against = "unconditional"
    estimator: DiagonalEstimator = field(default_factory=DiagonalEstimator)

    summary = "How much sharper the density of latents is with the caption than without it, at every place."
    source = "arXiv:2605.26756"
    use_when = (
        "You want the published map, or you rank the pixels of one picture. The baseline, which is the unconditional "
        "branch or a less-trained checkpoint, must not have memorized the picture."
    )
    avoid_when = (
        "You need a mask with a threshold that holds for other pictures: late in a run ordinary pictures reach the "
        "same values. Use `settled-detail`, which reads the same curvature early in the run."
    )

    @property
    def name(self) -> str:
        """`curvature-difference`, followed by the baseline unless that is the unconditional branch."""
        return named("curvature-difference", self.baseline)

    @property
    def observes(self) -> str:
        """The Jacobian late in the run."""
        return OBSERVED

    def cost(self, setup: "Setup") -> float:
        """One evaluation of both branches for every probe, and a baseline."""
        return self.estimator.probes + super().cost(setup)

    def difference(self, watched: Watched) -> Diagonal:
        """Δh with its standard error, signed and per channel, shaped like the latents."""
        return self._estimated(watched, summed=False)

    def estimate(self, watched: Watched) -> Diagonal:
        """Σ_channels Δh with its standard error, signed, (B, h, w)."""
        return self._estimated(watched, summed=True)

    def map(self, watched: Watched) -> Map:
        """ReLU(Σ_channels Δh) of every image, (B, h, w)."""
        found = self.estimate(watched)
        return Map(found.value.relu(), found.error)

    @torch.no_grad()
    def _estimated(self, watched: Watched, *, summed: bool) -> Diagonal:
        step = watched.trajectory.step(self.step)
        baseline = watched.against(step)
        one_network = _network(baseline.denoiser) is _network(watched.denoiser)

        def difference(x: Tensor, rows: Tensor) -> Tensor:
            cond, less = input_rows(step.cond_inputs, rows), input_rows(baseline.inputs, rows)
            # captions of different lengths do not fit into one batch
            if one_network and (both := together(cond, less)) is not None:
                values = watched.denoiser(torch.cat([x, x]), step.level, both).epsilon
                return values[: len(x)] - values[len(x) :]
            return watched.denoiser(x, step.level, cond).epsilon - baseline.denoiser(x, step.level, less).epsilon

        value = step.cond.epsilon - baseline.epsilon(step.cond.x, step.level)
        return _curvature(
            self.estimator, difference, subtractable(step.cond, value), step, watched.seeds, summed=summed
        )


@dataclass(frozen=True)
class Curvature(Localizer):
    """The curvature of the conditional branch alone, in 1/(latent unit)², without a baseline.

    Attributes:
        step: the evaluation at which the Jacobian is taken.
        estimator: how its diagonal is estimated.
    """

    step: Place = -2
    estimator: DiagonalEstimator = field(default_factory=DiagonalEstimator)

    name = "curvature"  # type: ignore[override]
    summary = "How sharp the density of latents is at every place, without a baseline."
    source = "arXiv:2605.26756"
    use_when = "There is no baseline: an unconditional model, without a less-trained checkpoint."
    avoid_when = "There is one: late in a run every picture is settled, memorized or not. Use `settled-detail`."

    @property
    def observes(self) -> str:
        """The Jacobian late in the run."""
        return OBSERVED

    def cost(self, setup: "Setup") -> float:
        """One evaluation of the conditional branch for every probe, which is half of one of both branches."""
        return self.estimator.probes * (0.5 if setup.guided else 1.0)

    def estimate(self, watched: Watched) -> Diagonal:
        """Σ_channels diag(−∇²log p(x|c)) with its standard error, signed, (B, h, w)."""
        step = watched.trajectory.step(self.step)

        def epsilon(x: Tensor, rows: Tensor) -> Tensor:
            return watched.denoiser(x, step.level, input_rows(step.cond_inputs, rows)).epsilon

        value = subtractable(step.cond, step.cond.epsilon)
        return _curvature(self.estimator, epsilon, value, step, watched.seeds, summed=True)

    def map(self, watched: Watched) -> Map:
        """ReLU(Σ_channels diag(−∇²log p(x|c))) of every image, (B, h, w)."""
        found = self.estimate(watched)
        return Map(found.value.relu(), found.error)


def _network(denoiser: Denoiser) -> object:
    """The network behind a denoiser, or the denoiser itself."""
    return getattr(denoiser, "module", denoiser)


def _curvature(
    estimator: DiagonalEstimator,
    epsilon: Function,
    value: Tensor | None,
    step: Step,
    seeds: Sequence[int] | None,
    *,
    summed: bool,
) -> Diagonal:
    """The diagonal of ∂ε/∂x over σ at a step, with its standard error.

    Args:
        estimator: of the diagonal.
        epsilon: ε, or a difference of two, as a function of x.
        value: its value at the step, None if it must be computed again.
        step: the evaluation.
        seeds: one per image, for its probes.
        summed: whether to sum over channels.
    """

    def reduce(diagonal: Tensor) -> Tensor:
        return (over_channels(diagonal, step.cond_inputs) if summed else diagonal) / step.cond.sigma

    return estimator.estimate(epsilon, step.cond.x, scale=step.cond.sigma, value=value, reduce=reduce, seeds=seeds)


def against_empty() -> CurvatureDifference:
    """Make `curvature-difference-empty`, which compares with an empty caption."""
    return CurvatureDifference(baseline="empty")


def against_checkpoint() -> CurvatureDifference:
    """Make `curvature-difference-checkpoint`, which compares with a less-trained checkpoint."""
    return CurvatureDifference(baseline="checkpoint")
