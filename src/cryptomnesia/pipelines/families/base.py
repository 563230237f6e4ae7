"""What a model family is: everything that the library needs to know about a pipeline class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from cryptomnesia.pipelines.denoiser import Denoiser, Kind
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.schedule import Schedule
from cryptomnesia.settings import Sampling


@dataclass(frozen=True)
class NetworkCall:
    """One call of the network by the pipeline.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        output: what the network returned.
        module: the network.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    module: nn.Module | None = None


@dataclass(frozen=True)
class Branch:
    """One guidance branch of one evaluation.

    Attributes:
        value: the network's output, (B, …).
        inputs: its conditioning.
    """

    value: Tensor
    inputs: Inputs


@dataclass(frozen=True)
class Evaluation:
    """Inputs and outputs of the network in one evaluation of B images.

    Attributes:
        x: the noisy samples that the network was given, (B, …).
        cond: the conditional branch.
        uncond: the unconditional branch, None without guidance.
    """

    x: Tensor
    cond: Branch
    uncond: Branch | None


class Family(Protocol):
    """A model family. Its class is called with a pipeline.

    Attributes:
        name: under which a user can vouch for a pipeline (`cryptomnesia.vouch`).
        module: the denoising network.
        kind: what the network predicts.
        schedule: the noise schedule that the model was trained on.
        conditional: whether the pipeline takes captions.
    """

    name: ClassVar[str]
    module: nn.Module
    kind: Kind
    schedule: Schedule

    @property
    def beside(self) -> tuple[nn.Module, ...]:
        """Further networks whose calls `read` is given."""
        ...

    conditional: ClassVar[bool]

    def read(self, calls: Sequence[NetworkCall], sample: Tensor) -> Evaluation | None:
        """The evaluation that a solver's step uses; None if the network was not called.

        Args:
            calls: the calls of the network since the step before, oldest first.
            sample: the solver's latents before the step, (B, …).

        Raises:
            UsageError: if the calls cannot be told apart as guidance branches.
        """
        ...

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether every evaluation of a call with these settings has an unconditional branch."""
        ...

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline.

        Args:
            given: arguments of the call by name.
            defaults: default values of all arguments.
        """
        ...

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """Arguments of a call of the pipeline that makes one image per prompt."""
        ...

    def denoiser(self) -> Denoiser:
        """The model as a differentiable function."""
        ...
