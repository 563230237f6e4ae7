"""What the families of transformers that are trained on rectified flow have in common."""

from typing import ClassVar

from cryptomnesia.pipelines.families.base import NetworkFamily


class TransformerFamily(NetworkFamily):
    """Base class of the families of pipelines with a `transformer` that is trained on rectified flow."""

    network: ClassVar[str] = "transformer"
    flow: ClassVar[bool] = True

    def native(self) -> tuple[int, int]:
        """The pipeline's default size."""
        size = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return size, size
