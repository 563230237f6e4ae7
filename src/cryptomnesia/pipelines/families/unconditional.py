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
    """Family of `DDPMPipeline` and `DDIMPipeline`. The only branch counts as the conditional one."""

    conditional: ClassVar[bool] = False

    def __init__(self, pipe: Any) -> None:
        """Read the prediction type and the noise schedule of `pipe`."""
        self.module: nn.Module = pipe.unet
        self.kind: Kind = pipe.scheduler.config.prediction_type
        self.schedule = schedule_of(pipe.scheduler)

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation:
        """One call, one branch."""
        return Evaluation(args[0] if args else kwargs["sample"], Branch(value, {}), None)

    def guided_in(self, sampling: Sampling) -> bool:
        """Never."""
        return False

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`; guidance is 1."""
        return sampling_of(given, {**defaults, "guidance_scale": 1.0}, native=(0, 0))

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """The arguments of a call of the pipeline that makes as many images as there are prompts."""
        return {"batch_size": len(prompts), "num_inference_steps": sampling.steps, **sampling.options}

    def denoiser(self) -> UNetDenoiser:
        """The UNet as a differentiable function."""
        return UNetDenoiser(self.module, self.schedule, self.kind)
