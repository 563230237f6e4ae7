"""What the families of transformers that are trained on rectified flow have in common."""

from typing import Any, ClassVar

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.families.base import NetworkFamily


class TransformerFamily(NetworkFamily):
    """Base class of the families of pipelines with a `transformer` that is trained on rectified flow."""

    network: ClassVar[str] = "transformer"
    flow: ClassVar[bool] = True

    def __init__(self, pipe: Any) -> None:
        """Read what the network predicts, and on which noise schedule it was trained.

        Raises:
            UsageError: for a scheduler that does not solve the model, or cannot add noise to a picture if it has to.
        """
        super().__init__(pipe)
        if "strength" in defaults_of(pipe) and not hasattr(pipe.scheduler, "scale_noise"):
            raise UsageError(
                f"a {type(pipe).__name__} adds noise to a picture, which {type(pipe.scheduler).__name__} cannot on "
                "rectified flow; use FlowMatchEulerDiscreteScheduler"
            )

    def native(self) -> tuple[int, int]:
        """The pipeline's default size."""
        size = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return size, size
