"""The denoiser as a differentiable function, and what its output means.

With x_t = α·x_0 + σ·ε the score is s = −ε/σ. For ε-prediction the network's output is ε. For v-prediction it is
v = α·ε − σ·x_0, hence ε = α·v + σ·x and x̂_0 = α·x − σ·v. For rectified flow α + σ = 1 and the output is v = ε − x_0,
hence ε = x + α·v and x̂_0 = x − σ·v.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cryptomnesia.pipelines.inputs import GRID, Inputs, unpacked
from cryptomnesia.pipelines.schedule import Level

Kind = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
"""What a network predicts, in the words of diffusers' `prediction_type`."""

FINEST = 0.01
"""Difference of neighbouring latents that counts as one step of detail; latents usually have a deviation near 1."""


@dataclass(frozen=True)
class Prediction:
    """What the network predicts at x.

    Attributes:
        x: the network's input α·x_0 + σ·ε, (B, C, h, w), or (B, tokens, channels) where latents are packed.
        value: the network's output, shaped like x.
        alpha: α of the step.
        sigma: σ of the step, > 0.
        kind: what the network predicts.
    """

    x: Tensor
    value: Tensor
    alpha: float
    sigma: float
    kind: Kind

    @property
    def epsilon(self) -> Tensor:
        """The noise estimate, (B, C, h, w)."""
        if self.kind == "epsilon":
            return self.value
        if self.kind == "v_prediction":
            return self.alpha * self.value + self.sigma * self.x
        if self.kind == "flow_prediction":
            return self.x + self.alpha * self.value
        return (self.x - self.alpha * self.value) / self.sigma

    @property
    def x0(self) -> Tensor:
        """The estimate of the clean latent, (B, C, h, w)."""
        if self.kind == "sample":
            return self.value
        if self.kind == "v_prediction":
            return self.alpha * self.x - self.sigma * self.value
        if self.kind == "flow_prediction":
            return self.x - self.sigma * self.value
        return (self.x - self.sigma * self.value) / self.alpha

    @property
    def score(self) -> Tensor:
        """The score ∇log p(x), (B, C, h, w)."""
        return -self.epsilon / self.sigma

    def rows(self, rows: list[int]) -> "Prediction":
        """The prediction for the samples with the numbers `rows`."""
        return Prediction(self.x[rows], self.value[rows], self.alpha, self.sigma, self.kind)


class Denoiser(Protocol):
    """A model as a differentiable function, which can also be evaluated beside the trajectory of a run."""

    def __call__(self, x: Tensor, level: Level, inputs: Inputs) -> Prediction:
        """The prediction at x (B, C, h, w) and a noise level, under the conditioning `inputs`."""
        ...


def norms(x: Tensor) -> Tensor:
    """ℓ2 norm of every sample of x (B, …) in fp32, shape (B,)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x.detach().flatten(1), dim=1, dtype=wide).float()


def detail(x: Tensor, inputs: Inputs) -> Tensor:
    """The mean of log(1 + |∇x|/`FINEST`) over all neighbours in every sample, (B,), ≥ 0.

    It grows with the length of a code of the picture. It is NaN where nothing says what the neighbours are.

    Args:
        x: latents (B, C, h, w), or (B, tokens, channels) where they are packed.
        inputs: conditioning of the network, which tells where the tokens of packed latents are.
    """
    if x.dim() != 4 and GRID not in inputs:
        return torch.full((len(x),), torch.nan, device=x.device)
    wide = unpacked(x.detach(), inputs).to(torch.promote_types(x.dtype, torch.float32))
    differences = torch.cat([wide.diff(dim=dim).abs().flatten(1) for dim in (-1, -2)], dim=1)
    return (differences / FINEST).log1p().sum(dim=1).float() / max(1, differences.shape[1])
