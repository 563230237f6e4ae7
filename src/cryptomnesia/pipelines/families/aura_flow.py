"""AuraFlow: a transformer that is trained on rectified flow, with batched guidance.

If the guidance is above 1, the network is called once per evaluation with both branches, the unconditional samples
first. The timestep is given in [0, 1].
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.families.transformer import TransformerFamily
from cryptomnesia.settings import Sampling


class AuraFlowFamily(TransformerFamily):
    """The family of `AuraFlowPipeline`."""

    name: ClassVar[str] = "aura-flow"

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep in [0, 1], (B,)."""
        return super().time(t / 1000, x).to(x.dtype)

    def native(self) -> tuple[int, int]:
        """The size that a call has by default."""
        defaults = defaults_of(self.pipe)
        return defaults["height"], defaults["width"]

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        # None is not the default here, but the size in the network's configuration
        size = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        filled_in = {name: size for name in ("height", "width") if given.get(name, size) is None}
        return super().sampling({**given, **filled_in}, defaults)
