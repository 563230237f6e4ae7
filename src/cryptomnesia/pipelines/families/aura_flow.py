"""AuraFlow: a transformer that is trained on rectified flow, with batched guidance.

If the guidance is above 1, the network is called once per evaluation with both branches, the unconditional samples
first. The timestep is given in [0, 1].
"""

from typing import ClassVar

from torch import Tensor

from cryptomnesia.pipelines.families.transformer import TransformerFamily


class AuraFlowFamily(TransformerFamily):
    """The family of `AuraFlowPipeline`."""

    name: ClassVar[str] = "aura-flow"

    def time(self, t: float, x: Tensor) -> Tensor:
        """The timestep in [0, 1], (B,)."""
        return super().time(t / 1000, x).to(x.dtype)

    def native(self) -> tuple[int, int]:
        """The size in the network's configuration, which the pipeline takes if its call is given none."""
        size = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        return size, size
