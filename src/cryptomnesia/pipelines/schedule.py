"""Noise schedules: how much of a sample is signal and how much is noise, x_t = α·x_0 + σ·ε.

A `Level` says it for one evaluation. During a run it is read from the solver (`cryptomnesia.pipelines.solvers`), since
solvers on Karras or other grids round the timesteps that they hand out. A `Schedule` says it for any timestep on which
the model was trained.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError

_LEAST_BAR = 1e-20
"""What stands for the ᾱ = 0 at the end of a schedule with zero terminal signal-to-noise ratio."""


@dataclass(frozen=True)
class Level:
    """The noise level of one evaluation.

    Attributes:
        t: the timestep, as the solver counts it.
        alpha: α, the share of x_0 in what the network sees.
        sigma: σ, the share of the noise.
    """

    t: float
    alpha: float
    sigma: float


class Schedule(Protocol):
    """How much signal and how much noise x_t holds, as a function of t."""

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α, σ) at timestep t, both float64 on the CPU and shaped like t."""
        ...


def level_at(schedule: Schedule, t: Tensor | float) -> Level:
    """The level at a timestep on which the model was trained."""
    if isinstance(schedule, VariancePreserving):
        return schedule.level(float(t))
    alpha, sigma = schedule(t)
    return Level(float(t), alpha.item(), sigma.item())


def level_of_ratio(schedule: Schedule, ratio: float) -> Level:
    """The level of a schedule on which a model was trained at which σ/α is nearest to `ratio`, > 0.

    Only a `VariancePreserving` schedule has a largest and a smallest ratio; its timesteps are whole numbers.
    """
    if isinstance(schedule, VariancePreserving):
        return schedule.level(float(schedule.nearest(ratio)))
    if isinstance(schedule, Continuous):
        return level_at(schedule, math.log(ratio) / 4)
    low, high = 0.0, float(getattr(schedule, "timesteps", 1000))
    # σ/α grows with t
    for _ in range(60):
        middle = (low + high) / 2
        alpha, sigma = schedule(middle)
        low, high = (middle, high) if sigma < ratio * alpha else (low, middle)
    return level_at(schedule, low)


@dataclass(frozen=True)
class VariancePreserving:
    """α = √ᾱ_t, σ = √(1 − ᾱ_t) of a discrete schedule.

    Solvers on Karras or exponential grids use fractional t. Between two trained timesteps log(σ/α) is interpolated
    linearly, as these solvers do.

    Attributes:
        alphas_cumprod: ᾱ_t, shape (T,), decreasing.
    """

    alphas_cumprod: Tensor

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α, σ) at timesteps 0 ≤ t ≤ T − 1."""
        at = torch.as_tensor(t).detach().to("cpu", torch.float64).clamp(0, len(self._log_ratio) - 1)
        low = at.floor().long()
        high = at.ceil().long()
        ratio = torch.lerp(self._log_ratio[low], self._log_ratio[high], at - low).exp()
        return preserving(ratio)

    def level(self, t: float) -> Level:
        """The level at one timestep; of the schedule only the values beside it are read, as every step needs one."""
        at = min(max(t, 0.0), len(self.alphas_cumprod) - 1.0)
        low = math.floor(at)
        ratio = self._log_ratio_at(low)
        if at > low:
            ratio += (at - low) * (self._log_ratio_at(low + 1) - ratio)
        ratio = math.exp(ratio)
        alpha = 1 / math.sqrt(1 + ratio**2)
        return Level(t, alpha, ratio * alpha)

    def nearest(self, ratio: float) -> int:
        """The trained timestep at which σ/α is nearest to `ratio`, on a logarithmic scale."""
        return int((self._log_ratio - math.log(ratio)).abs().argmin())

    def _log_ratio_at(self, t: int) -> float:
        """log(σ/α) of a trained timestep."""
        bar = max(float(self.alphas_cumprod[t]), _LEAST_BAR)
        return 0.5 * math.log((1 - bar) / bar)

    @cached_property
    def _log_ratio(self) -> Tensor:
        """log(σ/α) of every trained timestep, (T,)."""
        bars = self.alphas_cumprod.detach().to("cpu", torch.float64).clamp_min(_LEAST_BAR)
        return 0.5 * ((1 - bars) / bars).log()


@dataclass(frozen=True)
class Continuous:
    """The levels of models that are trained on t = log(σ/α)/4, as EDM and CosXL are."""

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α, σ) at any t."""
        return preserving((4 * torch.as_tensor(t).detach().to("cpu", torch.float64)).exp())


@dataclass(frozen=True)
class RectifiedFlow:
    """α = 1 − τ, σ = τ with τ = t/T: the straight path of flow matching.

    Attributes:
        timesteps: T, the timestep of pure noise.
    """

    timesteps: int = 1000

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α, σ) at timesteps 0 ≤ t ≤ T."""
        tau = torch.as_tensor(t).detach().to("cpu", torch.float64) / self.timesteps
        return 1 - tau, tau


def preserving(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(α, σ) with α² + σ² = 1 and σ/α = `ratio`."""
    alpha = (1 + ratio**2).rsqrt()
    return alpha, ratio * alpha


def schedule_of(scheduler: object) -> Schedule:
    """The noise schedule on which the model behind a diffusers scheduler was trained.

    Raises:
        UsageError: for a scheduler that says nothing about it.
    """
    from cryptomnesia.pipelines.solvers import is_continuous, is_flow

    config = getattr(scheduler, "config", {})
    if is_flow(scheduler):
        return RectifiedFlow(config["num_train_timesteps"])
    if is_continuous(scheduler):
        return Continuous()
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas_cumprod, Tensor):
        raise UsageError(
            f"got a {type(scheduler).__name__}, which has no alphas_cumprod; "
            "give a scheduler of the variance-preserving kind (DDIM, PNDM, Euler, DPM-Solver++, …)"
        )
    return VariancePreserving(alphas_cumprod)
