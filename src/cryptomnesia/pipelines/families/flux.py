"""Flux: a guidance-distilled transformer over packed latents, trained on rectified flow.

`guidance_scale` is an input of the network. There is an unconditional branch only under true guidance, which takes
`true_cfg_scale` above 1 and a negative prompt. The network is then called twice per evaluation, first for the
conditional branch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cryptomnesia.pipelines.denoiser import Inputs, Prediction
from cryptomnesia.pipelines.families.base import Branch, Evaluation, Shared
from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.pipelines.schedule import Schedule
from cryptomnesia.settings import Sampling

_CONDITIONING = ("encoder_hidden_states", "pooled_projections", "guidance")
_POSITIONS = ("txt_ids", "img_ids")


class FluxFamily(TransformerFamily):
    """The family of `FluxPipeline`; its samples are packed latents, (B, tokens, channels)."""

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation:
        """Read the conditional branch from the first call of an evaluation, the unconditional one from the second."""
        inputs: dict[str, Any] = {name: kwargs[name] for name in _CONDITIONING if kwargs.get(name) is not None}
        inputs |= {name: Shared(kwargs[name]) for name in _POSITIONS}
        branch = Branch(value, inputs)
        if pending is not None and pending.uncond is None:
            return replace(pending, uncond=branch)
        return Evaluation(args[0] if args else kwargs["hidden_states"], branch, None)

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the call uses true guidance."""
        negative = {"negative_prompt", "negative_prompt_embeds"} & sampling.options.keys()
        return sampling.options.get("true_cfg_scale", 1.0) > 1 and bool(negative)

    def denoiser(self) -> "FluxDenoiser":
        """The transformer as a differentiable function."""
        return FluxDenoiser(self.module, self.schedule)


@dataclass(frozen=True)
class FluxDenoiser:
    """The transformer of Flux as `Denoiser`."""

    module: nn.Module
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor | float, inputs: Inputs) -> Prediction:
        """The prediction at packed latents x (B, tokens, channels) and one timestep t for the whole batch."""
        t = torch.as_tensor(t, device=x.device)
        alpha, sigma = self.schedule(t)
        arguments = {name: value.value if isinstance(value, Shared) else value for name, value in inputs.items()}
        # the pipeline also rounds the timestep to the dtype before it divides
        time = t.expand(len(x)).to(x.dtype) / 1000
        value = self.module(hidden_states=x, timestep=time, **arguments, return_dict=False)[0]
        return Prediction(x, value, alpha.item(), sigma.item(), "flow_prediction")
