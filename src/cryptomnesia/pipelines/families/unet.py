"""UNet pipelines with batched guidance: SD 1, SD 2 and SDXL.

Under classifier-free guidance these pipelines call the UNet once per evaluation. The first half of the batch are the
unconditional samples, the second half the conditional ones; `added_cond_kwargs` of SDXL has the same order.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from cryptomnesia.pipelines.call import canonical
from cryptomnesia.pipelines.families.base import NetworkFamily
from cryptomnesia.settings import Sampling


class UNetFamily(NetworkFamily):
    """The family of `StableDiffusionPipeline` and `StableDiffusionXLPipeline`."""

    name: ClassVar[str] = "stable-diffusion"
    network: ClassVar[str] = "unet"
    sample_name: ClassVar[str] = "sample"
    by_position: ClassVar[bool] = True

    @property
    def distilled(self) -> bool:
        """Whether the UNet reads the guidance scale, as latent consistency models do."""
        return self.module.config.get("time_cond_proj_dim") is not None  # type: ignore[union-attr]

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep, ()."""
        return torch.tensor(t, device=x.device, dtype=torch.float32)

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1; a guidance-distilled UNet has no unconditional branch at any guidance."""
        return sampling.guidance > 1 and not self.distilled

    def native(self) -> tuple[int, int]:
        """The size in the UNet's configuration."""
        size = self.pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        # without a negative prompt SDXL uses zeros in its place, so an empty negative prompt is another setting there
        zeros = getattr(self.pipe, "config", {}).get("force_zeros_for_empty_prompt", False)
        if not zeros and canonical("negative_prompt", given.get("negative_prompt")) == "":
            given = {name: value for name, value in given.items() if name != "negative_prompt"}
        return super().sampling(given, defaults)
