"""Curvature differences Δh_∅ (arXiv:2605.26756): pixels whose posterior collapsed under the caption only.

Tweedie's second-order formula, Cov[x_0|x_t] = (σ⁴·∇²log p + σ²·I)/α², says that a coordinate whose
posterior variance is gone has a large −∂²log p/∂x_i². A caption may legitimately fix pixels too, so
the curvature of an underfitted baseline, here the same model without the caption, is subtracted:

    Δh_∅ = diag(−∇²log p(x|c)) − diag(−∇²log p(x)) = (diag J_ε_c − diag J_ε_u)/σ,   J_ε = ∂ε/∂x.

The map is ReLU(Σ_channels Δh_∅) at the last step. It asks for an unconditional branch that has not
memorized the picture. The paper's definition with 1/σ is used; its released code leaves it out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cryptomnesia.denoiser import Denoiser, Inputs
from cryptomnesia.errors import UsageError
from cryptomnesia.localize.base import both_branches
from cryptomnesia.trajectory import Step, Trajectory


@dataclass(frozen=True)
class CurvatureDifference:
    """Δh_∅ at evaluation `step`, in 1/(latent unit)², from `probes` reverse-mode products a branch.

    All images and both branches share the probes, which are drawn on the CPU from `seed`: a map
    depends neither on the batch nor on the device, and the branches' estimation errors largely cancel.
    """

    probes: int = 16
    seed: int = 0
    step: int = -1
    name: ClassVar[str] = "curvature-difference"

    def __post_init__(self) -> None:
        """Reject a number of probes that estimates nothing."""
        if self.probes < 1:
            raise UsageError(f"got {self.probes} probes; give at least 1")

    def difference(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """Δh_∅ itself, signed and per channel, (B, C, h, w)."""
        whole = both_branches(trajectory.step(self.step))
        probes = rademacher(whole.cond.x.shape[1:], self.probes, self.seed).to(whole.cond.x)

        def diagonal(step: Step, inputs: Inputs | None) -> Tensor:
            assert inputs is not None
            return jacobian_diagonal(lambda x: denoiser(x, step.t, inputs).epsilon, step.cond.x, probes)

        # one image at a time: the graph of a single one is what has to fit into memory
        images = [whole.rows([row]) for row in range(len(whole.sample))]
        pairs = [(diagonal(one, one.cond_inputs), diagonal(one, one.uncond_inputs)) for one in images]
        return torch.cat([cond - uncond for cond, uncond in pairs]) / whole.cond.sigma

    def map(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """ReLU(Σ_channels Δh_∅) of every image, (B, h, w)."""
        return self.difference(trajectory, denoiser).float().sum(dim=1).relu()


def rademacher(shape: torch.Size, count: int, seed: int) -> Tensor:
    """`count` independent random signs of `shape`, (count, *shape) float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, *shape), generator=generator).float().mul_(2).sub_(1)


def jacobian_diagonal(function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> Tensor:
    """Hutchinson's estimate of diag ∂f/∂x for every sample: the mean of v ⊙ (Jᵀv) over the probes.

    Args:
        function: maps (B, …) to (B, …), each sample on its own.
        x: where, (B, …).
        probes: v, (K, …), of entries ±1. Exact when K spans the space orthogonally.

    Returns:
        The estimate, (B, …).
    """
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        value = function(at)
        total = torch.zeros_like(x)
        for number, probe in enumerate(probes, start=1):
            directions = probe.expand_as(value)
            (product,) = torch.autograd.grad(value, at, directions, retain_graph=number < len(probes))
            total += probe * product
    return total / len(probes)
