"""Flux: a guidance-distilled transformer over packed latents, trained on rectified flow.

`guidance_scale` is an input of the network. There is an unconditional branch only under true guidance, which takes
`true_cfg_scale` above 1 and a negative prompt. The network is then called twice per evaluation, first for the
conditional branch. Kontext puts the tokens of a picture to edit behind the noisy ones.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.settings import Sampling


class FluxFamily(TransformerFamily):
    """The family of `FluxPipeline` and its relatives; its samples are packed latents, (B, tokens, channels)."""

    name: ClassVar[str] = "flux"
    shared: ClassVar[frozenset[str]] = frozenset({"txt_ids", "img_ids"})
    pictures: ClassVar[frozenset[str]] = frozenset({"image"})

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep in [0, 1], (B,)."""
        # the pipeline also rounds the timestep to the dtype before it divides
        return super().time(t, x).to(x.dtype) / 1000

    def grid(self, inputs: Mapping[str, Any], sample: Tensor) -> tuple[int, int]:
        """The numbers of rows and columns among the positions of the tokens."""
        rows, columns = inputs["img_ids"][: sample.shape[1], -2:].amax(dim=0).tolist()
        return int(rows) + 1, int(columns) + 1

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the call uses true guidance."""
        options = sampling.options
        embedded = {"negative_prompt_embeds", "negative_pooled_prompt_embeds"} <= options.keys()
        return options.get("true_cfg_scale", 1.0) > 1 and ("negative_prompt" in options or embedded)
