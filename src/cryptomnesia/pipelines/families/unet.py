"""UNet pipelines with batched guidance: SD 1, SD 2 and SDXL.

Under classifier-free guidance these pipelines call the UNet once per evaluation. The first half of the batch are the
unconditional samples, the second half the conditional ones; `added_cond_kwargs` of SDXL has the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cryptomnesia.pipelines.call import canonical, sampling_of
from cryptomnesia.pipelines.denoiser import Inputs, Kind, Prediction
from cryptomnesia.pipelines.families.base import Branch, Evaluation, captioned, split
from cryptomnesia.pipelines.schedule import Schedule, schedule_of
from cryptomnesia.settings import Sampling

_CONDITIONING = ("encoder_hidden_states", "timestep_cond", "added_cond_kwargs")


class UNetFamily:
    """The family of `StableDiffusionPipeline` and `StableDiffusionXLPipeline`."""

    conditional: ClassVar[bool] = True

    def __init__(self, pipe: Any) -> None:
        """Read the prediction type and the noise schedule of `pipe`."""
        self.pipe = pipe
        self.module: nn.Module = pipe.unet
        self.kind: Kind = pipe.scheduler.config.prediction_type
        self.schedule = schedule_of(pipe.scheduler)

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation:
        """Read both branches, or the only one, from the one call that an evaluation makes."""
        x = args[0] if args else kwargs["sample"]
        inputs = {name: kwargs[name] for name in _CONDITIONING if kwargs.get(name) is not None}
        if self.pipe.do_classifier_free_guidance:
            return split(x, value, inputs)
        return Evaluation(x, Branch(value, inputs), None)

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1; a guidance-distilled UNet has no unconditional branch at any guidance."""
        return sampling.guidance > 1 and self.pipe.unet.config.time_cond_proj_dim is None

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        size = self.pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        scale = self.pipe.vae_scale_factor
        # without a negative prompt SDXL uses zeros in its place, so an empty negative prompt is another setting there
        zeros = getattr(self.pipe, "config", {}).get("force_zeros_for_empty_prompt", False)
        if not zeros and canonical("negative_prompt", given.get("negative_prompt")) == "":
            given = {name: value for name, value in given.items() if name != "negative_prompt"}
        return sampling_of(given, defaults, native=(height * scale, width * scale))

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """Arguments of a call of the pipeline that makes one image per prompt."""
        return captioned(prompts, sampling)

    def denoiser(self) -> "UNetDenoiser":
        """The UNet as a differentiable function."""
        return UNetDenoiser(self.module, self.schedule, self.kind)


@dataclass(frozen=True)
class UNetDenoiser:
    """A UNet, with or without conditioning, as `Denoiser`."""

    module: nn.Module
    schedule: Schedule
    kind: Kind

    def __call__(self, x: Tensor, t: Tensor | float, inputs: Inputs) -> Prediction:
        """The prediction at x (B, C, h, w) and one timestep t for the whole batch."""
        t = torch.as_tensor(t, device=x.device)
        alpha, sigma = self.schedule(t)
        value = self.module(x, t, **inputs, return_dict=False)[0]
        return Prediction(x, value, alpha.item(), sigma.item(), self.kind)
