"""Flux: a guidance-distilled transformer over packed latents, trained on rectified flow.

`guidance_scale` is an input of the network. Only under true guidance (`true_cfg_scale` above 1 and a
negative prompt) is there an unconditional branch; the network is then called twice an evaluation,
for the conditional branch first.
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
    """Family of `FluxPipeline`; samples are packed latents, (B, tokens, channels)."""

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation:
        """The first call of an evaluation is the conditional branch, the second the unconditional one."""
        inputs: dict[str, Any] = {name: kwargs[name] for name in _CONDITIONING if kwargs.get(name) is not None}
        inputs |= {name: Shared(kwargs[name]) for name in _POSITIONS}
        branch = Branch(value, inputs)
        if pending is not None and pending.uncond is None:
            return replace(pending, uncond=branch)
        return Evaluation(args[0] if args else kwargs["hidden_states"], branch, None)

    def guided_in(self, sampling: Sampling) -> bool:
        """Under true guidance."""
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
        own = {name: held.value if isinstance(held, Shared) else held for name, held in inputs.items()}
        # as the pipeline does: first rounded, then divided
        time = t.expand(len(x)).to(x.dtype) / 1000
        value = self.module(hidden_states=x, timestep=time, **own, return_dict=False)[0]
        return Prediction(x, value, alpha.item(), sigma.item(), "flow_prediction")
