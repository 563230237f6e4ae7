"""PixArt: a transformer that predicts noise, with batched guidance, the unconditional samples first.

Behind the prediction lies a learned variance, which the pipeline cuts off before the solver's step.
"""

from typing import ClassVar

from cryptomnesia.pipelines.families.network import NetworkFamily


class PixArtFamily(NetworkFamily):
    """The family of `PixArtAlphaPipeline` and `PixArtSigmaPipeline`."""

    name: ClassVar[str] = "pixart"
    network: ClassVar[str] = "transformer"

    def native(self) -> tuple[int, int]:
        """The size in the transformer's configuration."""
        size = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        return size, size
