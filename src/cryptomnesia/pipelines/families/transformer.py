"""What the families of transformers that are trained on rectified flow have in common."""

from typing import Any, ClassVar

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.families.network import NetworkFamily
from cryptomnesia.pipelines.solvers import KNOWN, solver_of


class TransformerFamily(NetworkFamily):
    """Base class of the families of pipelines with a `transformer` that is trained on rectified flow.

    Attributes:
        solvers: the schedulers whose timesteps the pipeline can set.
    """

    network: ClassVar[str] = "transformer"
    flow: ClassVar[bool] = True
    solvers: ClassVar[frozenset[str]] = KNOWN

    def __init__(self, pipe: Any) -> None:
        """Read what the network predicts, and on which noise schedule it was trained.

        Raises:
            UsageError: for a scheduler that does not solve the model, that the pipeline cannot call, or that cannot add
                noise to a picture if it has to.
        """
        super().__init__(pipe)
        name = solver_of(pipe.scheduler)
        if name not in self.solvers:
            raise UsageError(
                f"a {type(pipe).__name__} cannot set the timesteps of a {name}; use {' or '.join(sorted(self.solvers))}"
            )
        if "strength" in defaults_of(pipe) and not hasattr(pipe.scheduler, "scale_noise"):
            raise UsageError(
                f"a {type(pipe).__name__} adds noise to a picture, which {name} cannot on rectified flow; use "
                "FlowMatchEulerDiscreteScheduler"
            )

    def native(self) -> tuple[int, int]:
        """The pipeline's default size."""
        size = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return size, size
