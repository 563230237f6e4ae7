"""What a model family is: everything that the library needs to know about a pipeline class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import PER_PROMPT
from cryptomnesia.pipelines.denoiser import Denoiser, Inputs, Kind
from cryptomnesia.pipelines.schedule import Schedule
from cryptomnesia.settings import Sampling


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


@dataclass(frozen=True)
class Shared:
    """A conditioning tensor without a batch dimension; it is the same for every image."""

    value: Tensor

    def __getitem__(self, rows: Any) -> "Shared":
        """The same tensor, whatever images are asked for."""
        return self


class Family(Protocol):
    """A model family. Its class is called with a pipeline.

    Attributes:
        module: the denoising network.
        kind: what the network predicts.
        schedule: the noise schedule of the pipeline's scheduler.
        conditional: whether the pipeline takes captions.
    """

    module: nn.Module
    kind: Kind
    schedule: Schedule
    conditional: ClassVar[bool]

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation | None:
        """The evaluation as far as it is known after one call of the network.

        Args:
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            value: the network's output.
            pending: the evaluation as it was known before this call; None at the first call of an evaluation.
        """
        ...

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether a call with these settings has an unconditional branch."""
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


def split(x: Tensor, value: Tensor, inputs: Inputs) -> Evaluation:
    """The evaluation of a call with both branches in one batch, the unconditional samples in its first half."""
    first, second = _halves(inputs)
    uncond, cond = value.chunk(2)
    return Evaluation(x.chunk(2)[1], Branch(cond, second), Branch(uncond, first))


def captioned(prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
    """Arguments of a call of a text-to-image pipeline that makes one image per prompt."""
    return {
        "prompt": list(prompts),
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "height": sampling.height,
        "width": sampling.width,
        **{name: _repeated(name, value, len(prompts)) for name, value in sampling.options.items()},
    }


def _repeated(name: str, value: Any, count: int) -> Any:
    """The value of an option for `count` prompts; one text, or a list of equal texts, holds for every prompt."""
    if name not in PER_PROMPT:
        return value
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and texts and isinstance(texts[0], str) and set(texts) == {texts[0]}:
        return [texts[0]] * count
    return value


def _halves(inputs: Inputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The conditioning of the first and of the second half of a batch."""
    first, second = {}, {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            first[name], second[name] = _halves(value)
        elif isinstance(value, Tensor) and value.shape[0] % 2 == 0:
            first[name], second[name] = value.chunk(2)
        else:
            raise UsageError(f"got {name} of {type(value).__name__}; expected a tensor with both guidance branches")
    return first, second
