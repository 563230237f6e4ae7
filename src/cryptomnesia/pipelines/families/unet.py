"""UNet pipelines with batched guidance: SD 1, SD 2, SDXL, Kolors and LCM.

Under classifier-free guidance these pipelines call the UNet once per evaluation. The first half of the batch are the
unconditional samples, the second half the conditional ones; `added_cond_kwargs` of SDXL has the same order.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import canonical, defaults_of
from cryptomnesia.pipelines.families.network import NetworkFamily
from cryptomnesia.settings import Sampling


class UNetFamily(NetworkFamily):
    """The family of the text-to-image pipelines of SD 1, SD 2, SDXL, Kolors and LCM."""

    name: ClassVar[str] = "stable-diffusion"
    network: ClassVar[str] = "unet"
    sample_name: ClassVar[str] = "sample"
    by_position: ClassVar[bool] = True
    needed: ClassVar[frozenset[str]] = frozenset()
    """Names of the pictures that every call needs."""

    @property
    def distilled(self) -> bool:
        """Whether the UNet reads the guidance scale, as latent consistency models do."""
        return self.module.config.get("time_cond_proj_dim") is not None  # type: ignore[union-attr]

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep as a number without dimensions, (), for the whole batch."""
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

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """Arguments of a call of the pipeline that makes one image per prompt.

        Raises:
            UsageError: if a picture is missing, there are several, or a size is given to a pipeline that takes none.
        """
        made = super().arguments(prompts, sampling)
        kind = type(self.pipe).__name__
        if missing := sorted(self.needed - made.keys()):
            raise UsageError(f"a {kind} needs {', '.join(missing)}; give it as an argument of the call")
        for name in sorted(self.pictures & sampling.options.keys()):
            given = sampling.options[name]
            if isinstance(given, list | tuple) and len(given) > 1:
                raise UsageError(f"got {len(given)} values of {name}; give one that holds for all images")
        if {"height", "width"} & (made.keys() - defaults_of(self.pipe).keys()):
            raise UsageError(f"a {kind} takes no height and width; its pictures are as large as the one it is given")
        return made
