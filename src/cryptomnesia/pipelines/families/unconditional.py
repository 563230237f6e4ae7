"""UNet pipelines without captions: DDPM and DDIM."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from cryptomnesia.pipelines.call import sampling_of
from cryptomnesia.pipelines.denoiser import Kind
from cryptomnesia.pipelines.families.base import Branch, Evaluation
from cryptomnesia.pipelines.families.unet import UNetDenoiser
from cryptomnesia.pipelines.schedule import schedule_of
from cryptomnesia.settings import Sampling


class UnconditionalFamily:
    """The family of `DDPMPipeline` and `DDIMPipeline`. Their only branch counts as the conditional branch."""

    conditional: ClassVar[bool] = False

    def __init__(self, pipe: Any) -> None:
        """Read the prediction type and the noise schedule of `pipe`."""
        self.module: nn.Module = pipe.unet
        self.kind: Kind = pipe.scheduler.config.prediction_type
        self.schedule = schedule_of(pipe.scheduler)

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation:
        """Read the only branch from the one call that an evaluation makes."""
        return Evaluation(args[0] if args else kwargs["sample"], Branch(value, {}), None)

    def guided_in(self, sampling: Sampling) -> bool:
        """False: these pipelines have no guidance."""
        return False

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`; the guidance is 1, which means none."""
        return sampling_of(given, {**defaults, "guidance_scale": 1.0}, native=(0, 0))

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """Arguments of a call of the pipeline that makes as many images as there are prompts."""
        return {"batch_size": len(prompts), "num_inference_steps": sampling.steps, **sampling.options}

    def denoiser(self) -> UNetDenoiser:
        """The UNet as a differentiable function."""
        return UNetDenoiser(self.module, self.schedule, self.kind)
