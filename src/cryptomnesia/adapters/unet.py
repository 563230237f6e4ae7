"""UNet pipelines with batched guidance: SD 1, SD 2 and SDXL.

Under classifier-free guidance these pipelines call the UNet once with the unconditional samples
first and the conditional ones behind them; `added_cond_kwargs` (SDXL) is laid out alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cryptomnesia.denoiser import Denoiser, Inputs, Kind, Prediction
from cryptomnesia.errors import UsageError
from cryptomnesia.schedule import Schedule, schedule_of
from cryptomnesia.settings import Sampling, sampling_of


@dataclass(frozen=True)
class Branch:
    """One guidance branch of one evaluation: the network's value (B, C, h, w) and its conditioning."""

    value: Tensor
    inputs: Inputs


class Adapter(Protocol):
    """What `watch` and the localizers need to know of a model family."""

    module: nn.Module
    kind: Kind
    schedule: Schedule

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor
    ) -> tuple[Tensor, Branch, Branch | None]:
        """(x, conditional, unconditional or None) of one call of the network."""
        ...

    def guidance(self) -> float:
        """The guidance scale of the call in progress."""
        ...

    def guided_at(self, guidance: float) -> bool:
        """Whether a call at this guidance scale has an unconditional branch."""
        ...

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        ...

    def denoiser(self) -> Denoiser:
        """The model as a differentiable function."""
        ...


class UNetAdapter:
    """Adapter of `StableDiffusionPipeline` and `StableDiffusionXLPipeline`."""

    def __init__(self, pipe: Any) -> None:
        """Read the prediction type and the noise schedule of `pipe`."""
        self.pipe = pipe
        self.module: nn.Module = pipe.unet
        self.kind: Kind = pipe.scheduler.config.prediction_type
        self.schedule = schedule_of(pipe.scheduler)

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor
    ) -> tuple[Tensor, Branch, Branch | None]:
        """(x, conditional, unconditional or None) of one UNet call."""
        x = args[0] if args else kwargs["sample"]
        inputs = {name: kwargs[name] for name in _CONDITIONING if kwargs.get(name) is not None}
        if not self.pipe.do_classifier_free_guidance:
            return x, Branch(value, inputs), None
        first, second = _halves(inputs)
        uncond, cond = value.chunk(2)
        return x.chunk(2)[1], Branch(cond, second), Branch(uncond, first)

    def guidance(self) -> float:
        """The guidance scale of the call in progress; 1 without guidance."""
        return float(self.pipe.guidance_scale) if self.pipe.do_classifier_free_guidance else 1.0

    def guided_at(self, guidance: float) -> bool:
        """Whether a call at this guidance scale has an unconditional branch; distilled UNets never have."""
        return guidance > 1 and self.pipe.unet.config.time_cond_proj_dim is None

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        size = self.pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        scale = self.pipe.vae_scale_factor
        return sampling_of(given, defaults, guidance="guidance_scale", native=(height * scale, width * scale))

    def denoiser(self) -> "UNetDenoiser":
        """The UNet as a differentiable function."""
        return UNetDenoiser(self.module, self.schedule, self.kind)


_CONDITIONING = ("encoder_hidden_states", "timestep_cond", "added_cond_kwargs")


@dataclass(frozen=True)
class UNetDenoiser:
    """A conditional UNet as `Denoiser`."""

    module: nn.Module
    schedule: Schedule
    kind: Kind

    def __call__(self, x: Tensor, t: Tensor | float, inputs: Inputs) -> Prediction:
        """The prediction at x (B, C, h, w) and one timestep t for the whole batch."""
        t = torch.as_tensor(t, device=x.device)
        alpha, sigma = self.schedule(t)
        value = self.module(x, t, **inputs, return_dict=False)[0]
        return Prediction(x, value, alpha.item(), sigma.item(), self.kind)


def _halves(inputs: Inputs) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = {}, {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            first[name], second[name] = _halves(value)
        elif isinstance(value, Tensor) and value.shape[0] % 2 == 0:
            first[name], second[name] = value.chunk(2)
        else:
            raise UsageError(f"got {name} of {type(value).__name__}; expected a tensor with both guidance branches")
    return first, second
