"""Flux.2: a transformer over packed latents, trained on rectified flow.

The timestep is given in [0, 1]. The tokens of pictures to edit stand behind the noisy ones. `Flux2Pipeline` is
guidance-distilled: `guidance_scale` is an input of the network, and there is no unconditional branch.
`Flux2KleinPipeline` calls the network twice per evaluation if the guidance is above 1, first for the conditional
branch, unless its configuration says that it is distilled.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cryptomnesia.pipelines.call import sampling_of
from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.settings import Sampling


class Flux2Family(TransformerFamily):
    """The family of `Flux2Pipeline`; its samples are packed latents, (B, tokens, channels)."""

    name: ClassVar[str] = "flux-2"

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep in [0, 1], (B,)."""
        # the pipeline also rounds the timestep to the dtype before it divides
        return super().time(t, x).to(x.dtype) / 1000

    def grid(self, inputs: Mapping[str, Any], sample: Tensor) -> tuple[int, int]:
        """The numbers of rows and columns among the positions of the noisy tokens."""
        rows, columns = inputs["img_ids"][0, : sample.shape[1], 1:3].amax(dim=0).tolist()
        return int(rows) + 1, int(columns) + 1

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        # the size of a picture to edit takes the place of the model's
        native = self.native() if given.get("image") is None else (0, 0)
        return sampling_of(given, defaults, native=native)

    def guided_in(self, sampling: Sampling) -> bool:
        """False: the guidance is distilled."""
        return False


class Flux2KleinFamily(Flux2Family):
    """The family of `Flux2KleinPipeline`."""

    name: ClassVar[str] = "flux-2-klein"

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1, and the model not distilled."""
        return sampling.guidance > 1 and not self.pipe.config.is_distilled
