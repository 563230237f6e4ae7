"""Stable Diffusion 3: a transformer with batched guidance, trained on rectified flow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cryptomnesia.pipelines.denoiser import Inputs, Prediction
from cryptomnesia.pipelines.families.base import Branch, Evaluation, split
from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.pipelines.schedule import Schedule
from cryptomnesia.settings import Sampling

_CONDITIONING = ("encoder_hidden_states", "pooled_projections")


class SD3Family(TransformerFamily):
    """The family of `StableDiffusion3Pipeline`; the unconditional samples are the first half of a batch."""

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation | None:
        """Read both branches from the one call that an evaluation makes.

        Under skip-layer guidance there is a second call, with layers left out; it is no guidance branch and changes
        nothing.
        """
        if kwargs.get("skip_layers") is not None:
            return pending
        x = args[0] if args else kwargs["hidden_states"]
        inputs = {name: kwargs[name] for name in _CONDITIONING if kwargs.get(name) is not None}
        if self.pipe.do_classifier_free_guidance:
            return split(x, value, inputs)
        return Evaluation(x, Branch(value, inputs), None)

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1."""
        return sampling.guidance > 1

    def denoiser(self) -> "SD3Denoiser":
        """The transformer as a differentiable function."""
        return SD3Denoiser(self.module, self.schedule)


@dataclass(frozen=True)
class SD3Denoiser:
    """The transformer of Stable Diffusion 3 as `Denoiser`."""

    module: nn.Module
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor | float, inputs: Inputs) -> Prediction:
        """The prediction at x (B, C, h, w) and one timestep t for the whole batch."""
        t = torch.as_tensor(t, device=x.device)
        alpha, sigma = self.schedule(t)
        value = self.module(hidden_states=x, timestep=t.expand(len(x)), **inputs, return_dict=False)[0]
        return Prediction(x, value, alpha.item(), sigma.item(), "flow_prediction")
