"""CogView 4: a transformer that is trained on rectified flow.

If the guidance is above 1, the network is called twice per evaluation, first for the conditional branch. The scheduler
shifts σ but not the timesteps, so that the network is given timesteps that are evenly spaced.
"""

from typing import ClassVar

from cryptomnesia.pipelines.families.transformer import TransformerFamily


class CogView4Family(TransformerFamily):
    """The family of `CogView4Pipeline`."""

    name: ClassVar[str] = "cogview-4"
    solvers: ClassVar[frozenset[str]] = frozenset({"FlowMatchEulerDiscreteScheduler"})

    def native(self) -> tuple[int, int]:
        """The size in the network's configuration."""
        size = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        return size, size
