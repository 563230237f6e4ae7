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
from cryptomnesia.pipelines.families.base import NetworkFamily
from cryptomnesia.settings import Sampling


class UNetFamily(NetworkFamily):
    """The family of the text-to-image pipelines of SD 1, SD 2, SDXL, Kolors and LCM."""

    name: ClassVar[str] = "stable-diffusion"
    network: ClassVar[str] = "unet"
    sample_name: ClassVar[str] = "sample"
    by_position: ClassVar[bool] = True
    pictures: ClassVar[frozenset[str]] = frozenset()
    """Names of the call's arguments that are pictures, which every call needs."""

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

    @property
    def paired(self) -> bool:
        """Whether every prompt has a picture of its own."""
        return True

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
        if missing := sorted(self.pictures - made.keys()):
            raise UsageError(f"a {kind} needs {', '.join(missing)}; give it as an argument of the call")
        if {"height", "width"} & (made.keys() - defaults_of(self.pipe).keys()):
            raise UsageError(f"a {kind} takes no height and width; its pictures are as large as the one it is given")
        paired = self.pictures if self.paired else frozenset()
        return {name: _each(name, value, len(prompts)) if name in paired else value for name, value in made.items()}


def _each(name: str, value: Any, count: int) -> Any:
    """A picture for each of `count` prompts.

    Raises:
        UsageError: for several pictures.
    """
    if isinstance(value, list | tuple) and value and isinstance(canonical(name, value), str):
        return [value[0]] * count
    several = len(value) if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 4 else 1
    if several != 1:
        raise UsageError(f"got {several} values of {name}; give one that holds for all images")
    return [value] * count
