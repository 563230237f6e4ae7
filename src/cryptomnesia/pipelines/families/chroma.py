"""Chroma: a transformer over packed latents, trained on rectified flow.

If the guidance is above 1, the network is called twice per evaluation, first for the conditional branch. The timestep
is given in [0, 1].
"""

from typing import ClassVar

from cryptomnesia.pipelines.families.flux import FluxFamily
from cryptomnesia.settings import Sampling


class ChromaFamily(FluxFamily):
    """The family of `ChromaPipeline`; its samples are packed latents, (B, tokens, channels)."""

    name: ClassVar[str] = "chroma"

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether the guidance is above 1."""
        return sampling.guidance > 1
