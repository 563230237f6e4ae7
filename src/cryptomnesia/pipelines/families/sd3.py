"""Stable Diffusion 3: a transformer with batched guidance, the unconditional samples first.

Some networks for inpainting are given the mask and the masked picture in channels behind the noisy ones.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from cryptomnesia.pipelines.families.base import Evaluation, NetworkCall
from cryptomnesia.pipelines.families.transformer import TransformerFamily


class SD3Family(TransformerFamily):
    """The family of `StableDiffusion3Pipeline`, also for pictures that are changed or filled."""

    name: ClassVar[str] = "stable-diffusion-3"
    pictures: ClassVar[frozenset[str]] = frozenset({"image"})

    def read(self, calls: Sequence[NetworkCall], sample: Tensor) -> Evaluation | None:
        """Read both branches from one call.

        Under skip-layer guidance there is a second call, with layers left out. It is no guidance branch.
        """
        return super().read([call for call in calls if call.kwargs.get("skip_layers") is None], sample)
