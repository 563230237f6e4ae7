"""SANA: a transformer that is trained on rectified flow, with batched guidance, the unconditional samples first."""

from typing import ClassVar

from torch import Tensor

from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.families.transformer import TransformerFamily


class SanaFamily(TransformerFamily):
    """The family of `SanaPipeline`."""

    name: ClassVar[str] = "sana"

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep on the scale of the network, (B,)."""
        return super().time(t, x) * self.pipe.transformer.config.timestep_scale

    def native(self) -> tuple[int, int]:
        """The size that a call has by default."""
        defaults = defaults_of(self.pipe)
        return defaults["height"], defaults["width"]
