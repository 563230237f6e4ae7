"""What `watch`, `generate` and the localizers need to know of a model family."""

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
    """One guidance branch of one evaluation: the network's value (B, …) and its conditioning."""

    value: Tensor
    inputs: Inputs


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of B images, all its guidance branches: what the network saw and said.

    Attributes:
        x: the network's sample, (B, …).
        cond: the conditional branch.
        uncond: the unconditional one, None without guidance.
    """

    x: Tensor
    cond: Branch
    uncond: Branch | None


@dataclass(frozen=True)
class Shared:
    """A conditioning tensor without a batch dimension: the same for every image."""

    value: Tensor

    def __getitem__(self, rows: Any) -> "Shared":
        """Itself, whichever images are asked for."""
        return self


class Family(Protocol):
    """A model family.

    Attributes:
        module: the denoising network.
        kind: what it predicts.
        schedule: its noise schedule.
        conditional: whether images have captions.
    """

    module: nn.Module
    kind: Kind
    schedule: Schedule
    conditional: ClassVar[bool]

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor, pending: Evaluation | None
    ) -> Evaluation | None:
        """The evaluation as known after one call of the network.

        Args:
            args: of the call.
            kwargs: of the call.
            value: what the network returned.
            pending: what earlier calls of the same evaluation told.
        """
        ...

    def guided_in(self, sampling: Sampling) -> bool:
        """Whether a call with these settings has an unconditional branch."""
        ...

    def sampling(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sampling:
        """The settings of a call of the pipeline with the arguments `given`."""
        ...

    def arguments(self, prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
        """The arguments of a call of the pipeline that makes one image per prompt."""
        ...

    def denoiser(self) -> Denoiser:
        """The model as a differentiable function."""
        ...


def split(x: Tensor, value: Tensor, inputs: Inputs) -> Evaluation:
    """An evaluation of both branches in one batch, the unconditional samples first."""
    first, second = _halves(inputs)
    uncond, cond = value.chunk(2)
    return Evaluation(x.chunk(2)[1], Branch(cond, second), Branch(uncond, first))


def captioned(prompts: Sequence[str], sampling: Sampling) -> dict[str, Any]:
    """The arguments of a call of a text-to-image pipeline."""
    return {
        "prompt": list(prompts),
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "height": sampling.height,
        "width": sampling.width,
        **{
            name: [value] * len(prompts) if name in PER_PROMPT and isinstance(value, str) else value
            for name, value in sampling.options.items()
        },
    }


def _halves(inputs: Inputs) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = {}, {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            first[name], second[name] = _halves(value)
        elif isinstance(value, Tensor) and value.shape[0] % 2 == 0:
            first[name], second[name] = value.chunk(2)
        else:
            raise UsageError(f"got {name} of {type(value).__name__}; expected a tensor with both guidance branches")
    return first, second
