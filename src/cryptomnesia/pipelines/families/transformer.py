"""What the families of transformers that are trained on rectified flow have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from cryptomnesia.pipelines.call import sampling_of
from cryptomnesia.pipelines.denoiser import Kind
from cryptomnesia.pipelines.families.base import captioned
from cryptomnesia.pipelines.schedule import RectifiedFlow, Schedule
from cryptomnesia.settings import Sampling


class TransformerFamily:
    """Base class of the families of pipelines with a `transformer`."""

    conditional: ClassVar[bool] = True
    kind: Kind = "flow_prediction"

    def __init__(self, pipe: Any) -> None:
        """Read the noise schedule of `pipe`."""
        self.pipe = pipe
        self.module: nn.Module = pipe.transformer
        self.schedule: Schedule = RectifiedFlow(pipe.scheduler.config.num_train_timesteps)

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        size = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return sampling_of(given, defaults, native=(size, size))

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """Arguments of a call of the pipeline that makes one image per prompt."""
        return captioned(prompts, sampling)
