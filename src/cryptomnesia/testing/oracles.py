"""Two denoisers in closed form: a perfect memorizer and a model that memorized nothing.

Both are `Denoiser`s on a variance-preserving schedule, and both take the conditioning
`{"which": (B,) int64}`: which of their conditional distributions is asked for.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.pipelines.denoiser import Kind, Prediction
from cryptomnesia.pipelines.schedule import Level, RectifiedFlow, Schedule, VariancePreserving, level_at


def schedule() -> VariancePreserving:
    """SD's own noise schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return VariancePreserving(torch.cumprod(1 - betas, dim=0))


@dataclass(frozen=True)
class FiniteSet:
    """The optimal denoiser of finite image sets: x̂_0 = Σ_k w_k·μ_k with w = softmax(−‖x − α·μ_k‖²/2σ²).

    `sets[c]` (K_c, C, h, w) holds the images of condition c; one image makes a verbatim memory.
    """

    sets: tuple[Tensor, ...]

    def __call__(self, x: Tensor, level: Level | Tensor | float, inputs: Any) -> Prediction:
        """The noise estimate at x (B, C, h, w) under the conditions `inputs["which"]`."""
        level = _level(schedule(), level)
        alpha, sigma = level.alpha, level.sigma
        means = []
        for sample, which in zip(x, inputs["which"].tolist(), strict=True):
            images = self.sets[which].to(x)
            distance = (sample - alpha * images).flatten(1).square().sum(dim=1)
            weight = torch.softmax(-distance / (2 * sigma**2), dim=0)
            means.append((weight.view(-1, 1, 1, 1) * images).sum(dim=0))
        epsilon = (x - alpha * torch.stack(means)) / sigma
        return Prediction(x, epsilon, alpha, sigma, "epsilon")


@dataclass(frozen=True)
class Gaussian:
    """The denoiser of N(μ, Q·diag(λ)·Qᵀ): −∇²log p_t = Q·diag(1/(α²λ + σ²))·Qᵀ, the same everywhere.

    `mean[c]` (D,), `basis[c]` (D, D) orthogonal, `variances[c]` (D,), one of each per condition.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    kind: Kind = "epsilon"

    def schedule(self) -> Schedule:
        """Straight paths for flow prediction, else the variance-preserving one."""
        return RectifiedFlow() if self.kind == "flow_prediction" else schedule()

    def curvature(self, which: int, t: Any) -> Tensor:
        """−∇²log p_t of condition `which`, (D, D)."""
        alpha, sigma = self.schedule()(t)
        basis = self.basis[which]
        return (basis / (alpha**2 * self.variances[which] + sigma**2)) @ basis.T

    def __call__(self, x: Tensor, level: Level | Tensor | float, inputs: Any) -> Prediction:
        """The noise estimate at x (B, C, h, w) under the conditions `inputs["which"]`."""
        level = _level(self.schedule(), level)
        alpha, sigma = level.alpha, level.sigma
        rows = [
            sigma * self.curvature(which, level.t) @ (sample.double().flatten() - alpha * self.mean[which])
            for sample, which in zip(x, inputs["which"].tolist(), strict=True)
        ]
        epsilon = torch.stack(rows).view_as(x).to(x.dtype)
        return Prediction(x, value_of(x, epsilon, alpha, sigma, self.kind), alpha, sigma, self.kind)


def _level(schedule: Schedule, level: Level | Tensor | float) -> Level:
    """A noise level, which may be given as a timestep: an oracle can also take the place of a network."""
    return level if isinstance(level, Level) else level_at(schedule, level)


def value_of(x: Tensor, epsilon: Tensor, alpha: float, sigma: float, kind: Kind) -> Tensor:
    """What a network of that kind says when its noise estimate is ε."""
    x0 = (x - sigma * epsilon) / alpha
    return {
        "epsilon": epsilon,
        "sample": x0,
        "v_prediction": alpha * epsilon - sigma * x0,
        "flow_prediction": epsilon - x0,
    }[kind]
