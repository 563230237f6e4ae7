"""Qwen-Image: a transformer over packed latents, trained on rectified flow.

There is an unconditional branch only with `true_cfg_scale` above 1 and a negative prompt. The network is then called
twice per evaluation, first for the conditional branch, and the guided prediction is scaled to the norm of the
conditional one, token by token. `guidance_scale` is an input of guidance-distilled networks. The timestep is given in
[0, 1].
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.settings import Sampling


class QwenImageFamily(TransformerFamily):
    """The family of `QwenImagePipeline`; its samples are packed latents, (B, tokens, channels)."""

    name: ClassVar[str] = "qwen-image"
    shared: ClassVar[frozenset[str]] = frozenset({"img_shapes"})
    guidance_name: ClassVar[str] = "true_cfg_scale"

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep in [0, 1], (B,)."""
        # the pipeline also rounds the timestep to the dtype before it divides
        return super().time(t, x).to(x.dtype) / 1000

    def grid(self, inputs: Mapping[str, Any], sample: Tensor) -> tuple[int, int]:
        """Rows and columns of the shape that the pipeline gives for the first picture."""
        _, rows, columns = inputs["img_shapes"][0][0]
        return rows, columns

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`.

        Raises:
            UsageError: for `guidance_scale`, if the network does not read it.
        """
        if given.get("guidance_scale") is not None and not self.pipe.transformer.config.guidance_embeds:
            raise UsageError(
                f"got guidance_scale={given['guidance_scale']}, which a {type(self.pipe).__name__} ignores; give "
                "true_cfg_scale and negative_prompt"
            )
        return super().sampling(given, defaults)

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1 and there is a negative prompt."""
        negative = {"negative_prompt", "negative_prompt_embeds"} & sampling.options.keys()
        return sampling.guidance > 1 and bool(negative)
