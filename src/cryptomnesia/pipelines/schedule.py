"""Noise schedules: the map from a timestep t to (α, σ) in x_t = α·x_0 + σ·ε."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError


class Schedule(Protocol):
    """How much signal and how much noise x_t holds, as a function of t."""

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α, σ) at timestep t, both float64 on the CPU and shaped like t."""
        ...


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
        alpha = (1 + ratio**2).rsqrt()
        return alpha, ratio * alpha

    @cached_property
    def _log_ratio(self) -> Tensor:
        """log(σ/α) of every trained timestep, (T,)."""
        # a schedule with zero terminal signal-to-noise ratio has ᾱ = 0 at its end
        bars = self.alphas_cumprod.detach().to("cpu", torch.float64).clamp_min(1e-20)
        return 0.5 * ((1 - bars) / bars).log()


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


def schedule_of(scheduler: object) -> Schedule:
    """The noise schedule of a diffusers scheduler of the variance-preserving kind.

    Raises:
        UsageError: for a scheduler of another kind.
    """
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas_cumprod, Tensor):
        raise UsageError(
            f"got a {type(scheduler).__name__}, which has no alphas_cumprod; "
            "give a scheduler of the variance-preserving kind (DDIM, PNDM, Euler, DPM-Solver++, …)"
        )
    return VariancePreserving(alphas_cumprod)
