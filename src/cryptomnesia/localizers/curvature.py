"""Curvature differences Δh (arXiv:2605.26756): pixels whose posterior collapsed, more than a baseline's.

Tweedie's second-order formula, Cov[x_0|x_t] = (σ⁴·∇²log p + σ²·I)/α², says that a coordinate whose
posterior variance is gone has a large −∂²log p/∂x_i². A caption may legitimately fix pixels too, so
the curvature of an underfitted baseline is subtracted,

    Δh = diag(−∇²log p(x|c)) − diag(−∇²log p̃(x)) = (diag J_ε_c − diag J_ε̃)/σ,   J_ε = ∂ε/∂x,

the same model without the caption (Δh_∅) or a less-trained one with it (Δh_θ̃). The map is
ReLU(Σ_channels Δh). The paper looks at the last step; by default it is the one before here, because maps of the
bundled model point better there (σ = .14 rather than .04 with 50 steps; `by_step` of benchmarks/curvature.py). They
point better still early in the run, `step=0.1`, which is no longer the paper's map; from there `collapse` went on.
Δh_∅ asks for an unconditional branch that has not memorized the picture, Δh_θ̃ for a checkpoint that is early enough.
The paper's definition with 1/σ is used; its released code leaves it out.

The diagonal of the difference is estimated as a whole: both branches meet the same probes, and where their
Jacobians agree, so do their estimation errors, which then vanish.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryptomnesia.localizers.base import Localizer, Map, Watched, named, over_channels, subtractable
from cryptomnesia.localizers.baseline import Against, together
from cryptomnesia.localizers.jacobian.diagonal import Diagonal, DiagonalEstimator
from cryptomnesia.localizers.jacobian.products import Function
from cryptomnesia.pipelines.denoiser import Denoiser, input_rows
from cryptomnesia.tracing.trajectory import Place, Step

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup

OBSERVED = "the Jacobian at the evaluation before the last"
"""What both maps of this file are made from."""


@dataclass(frozen=True)
class CurvatureDifference(Localizer):
    """Δh at evaluation `step`, in 1/(latent unit)²."""

    step: Place = -2
    baseline: Against = "unconditional"
    estimator: DiagonalEstimator = field(default_factory=DiagonalEstimator)

    summary = "How much sharper the density of latents is with the caption than without it, at every place."
    source = "arXiv:2605.26756"
    use_when = (
        "You want the published map, or you rank the pixels of one picture. The unconditional branch, or the checkpoint "
        "that you compare with, must not have memorized the picture."
    )
    avoid_when = (
        "You need a mask with a threshold that holds for other pictures: late in a run ordinary pictures reach the same "
        "values. Use `collapse`, which reads the same curvature early."
    )

    @property
    def name(self) -> str:
        """`curvature-difference`, with the baseline behind it unless that is the unconditional branch."""
        return named("curvature-difference", self.baseline)

    @property
    def observes(self) -> str:
        """The Jacobian late in the run."""
        return OBSERVED

    def cost(self, setup: "Setup") -> float:
        """One evaluation of both branches per probe, and those of the baseline."""
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
            if one_network:
                both = watched.denoiser(torch.cat([x, x]), step.t, together(cond, less)).epsilon
                return both[: len(x)] - both[len(x) :]
            return watched.denoiser(x, step.t, cond).epsilon - baseline.denoiser(x, step.t, less).epsilon

        value = step.cond.epsilon - baseline.epsilon(step.cond.x, step.t)
        return _curvature(
            self.estimator, difference, subtractable(step.cond, value), step, watched.seeds, summed=summed
        )


@dataclass(frozen=True)
class Curvature(Localizer):
    """The curvature of the conditional branch alone, in 1/(latent unit)², without a baseline."""

    step: Place = -2
    estimator: DiagonalEstimator = field(default_factory=DiagonalEstimator)

    name = "curvature"
    summary = "How sharp the density of latents is at every place, without a baseline."
    source = "arXiv:2605.26756"
    use_when = "There is no baseline: an unconditional model, without a less-trained checkpoint."
    avoid_when = "There is one: late in a run every picture is settled, memorized or not. Use `collapse`."

    @property
    def observes(self) -> str:
        """The Jacobian late in the run."""
        return OBSERVED

    def cost(self, setup: "Setup") -> float:
        """One evaluation of the conditional branch per probe, half of one of both."""
        return self.estimator.probes * (0.5 if setup.guided else 1.0)

    def estimate(self, watched: Watched) -> Diagonal:
        """Σ_channels diag(−∇²log p(x|c)) with its standard error, signed, (B, h, w)."""
        step = watched.trajectory.step(self.step)

        def epsilon(x: Tensor, rows: Tensor) -> Tensor:
            return watched.denoiser(x, step.t, input_rows(step.cond_inputs, rows)).epsilon

        value = subtractable(step.cond, step.cond.epsilon)
        return _curvature(self.estimator, epsilon, value, step, watched.seeds, summed=True)

    def map(self, watched: Watched) -> Map:
        """ReLU(Σ_channels diag(−∇²log p(x|c))) of every image, (B, h, w)."""
        found = self.estimate(watched)
        return Map(found.value.relu(), found.error)


def _network(denoiser: Denoiser) -> object:
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
    """∂ε/∂x's diagonal over σ at a step where ε is `value`, if that is known, summed over channels or not."""

    def reduce(diagonal: Tensor) -> Tensor:
        return (over_channels(diagonal, step.cond_inputs) if summed else diagonal) / step.cond.sigma

    return estimator.estimate(epsilon, step.cond.x, scale=step.cond.sigma, value=value, reduce=reduce, seeds=seeds)


def against_empty() -> CurvatureDifference:
    """`curvature-difference-empty`."""
    return CurvatureDifference(baseline="empty")


def against_checkpoint() -> CurvatureDifference:
    """`curvature-difference-checkpoint`."""
    return CurvatureDifference(baseline="checkpoint")
