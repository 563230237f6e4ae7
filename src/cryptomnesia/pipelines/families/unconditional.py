"""UNet pipelines without captions: DDPM and DDIM."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cryptomnesia.pipelines.call import sampling_of
from cryptomnesia.pipelines.families.unet import UNetFamily
from cryptomnesia.settings import Sampling


class UnconditionalFamily(UNetFamily):
    """The family of `DDPMPipeline` and `DDIMPipeline`. Their only branch counts as the conditional branch."""

    name: ClassVar[str] = "unconditional"
    conditional: ClassVar[bool] = False

    @property
    def distilled(self) -> bool:
        """False: these networks read no guidance scale."""
        return False

    def guided_in(self, sampling: Sampling) -> bool:
        """False: these pipelines have no guidance."""
        return False

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`; the guidance is 1, which means none."""
        return sampling_of(given, {**defaults, "guidance_scale": 1.0}, native=(0, 0))

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """Arguments of a call of the pipeline that makes as many images as there are prompts."""
        return {"batch_size": len(prompts), "num_inference_steps": sampling.steps, **sampling.options}
