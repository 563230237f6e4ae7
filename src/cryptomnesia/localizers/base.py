"""What a localizer is: from a watched generation to a map of what is memorized."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import NotFiniteError, UsageError
from cryptomnesia.localizers.baseline import Against, Baseline, check_checkpoint
from cryptomnesia.pipelines.denoiser import Denoiser, Inputs, Prediction
from cryptomnesia.pipelines.families import Shared
from cryptomnesia.registry import Method, Requirement, overridable
from cryptomnesia.tracing.trajectory import Place, Step, Trajectory

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class Watched:
    """A generation to be mapped.

    Attributes:
        trajectory: with the tensors of the localizer's evaluations.
        denoiser: the network.
        baseline: what the map is compared with; None for the run's own unconditional branch.
        prompts: the captions, one per image, or None where they are not known in words.
        seeds: one per image, for random probes of its own; None gives all images the same probes.
        pipe: the pipeline, None where only its network is known.
    """

    trajectory: Trajectory
    denoiser: Denoiser
    baseline: Baseline | None = None
    prompts: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    pipe: Any = None

    def against(self, step: Step) -> Baseline:
        """The baseline at an evaluation.

        Raises:
            UsageError: where there is none.
        """
        if self.baseline is not None:
            return self.baseline
        if step.uncond is None or step.uncond_inputs is None:
            raise UsageError(
                "the run has no unconditional branch, which is the baseline of this map; generate with guidance "
                "above 1, or give the map another baseline: `empty` or `checkpoint`"
            )
        return Baseline(self.denoiser, step.uncond_inputs, step.uncond)


@dataclass(frozen=True)
class Map:
    """Maps of B images at latent resolution.

    Attributes:
        values: (B, h, w), ≥ 0 in the localizer's unit, higher is more memorized.
        errors: their standard errors (B, h, w), before negative values were cut, NaN where nothing is known of them;
            None if the localizer estimates nothing.
    """

    values: Tensor
    errors: Tensor | None = None


class Localizer(Method, Protocol):
    """A map over the picture: ≥ 0, higher is more memorized.

    Subclass this protocol: then `name` and `map` are all that a localizer has to define.

    Attributes:
        step: the evaluation that is looked at.
        baseline: what the map is compared with: `none`, the `unconditional` branch of the same run, the model asked with
            an `empty` caption, or a less-trained `checkpoint`.
    """

    step: Place = -1
    baseline: Against = "none"

    @overridable
    def evaluations(self) -> tuple[Place, ...]:
        """The evaluations whose tensors must be kept; the baseline is evaluated at the first of them."""
        return (self.step,)

    @overridable
    def requires(self) -> frozenset[Requirement]:
        """What the baseline requires."""
        needed: dict[Against, Requirement] = {
            "unconditional": "guidance",
            "empty": "captions",
            "checkpoint": "checkpoint",
        }
        return frozenset({needed[self.baseline]} if self.baseline in needed else ())

    def check(self, setup: "Setup") -> None:
        """Refuse a set-up in which the map cannot be computed.

        Raises:
            UsageError: saying why.
        """
        check_scales(setup)
        if self.baseline == "checkpoint":
            check_checkpoint(setup.pipe, setup.checkpoint)

    def cost(self, setup: "Setup") -> float:
        """Evaluations for the map, and one of another baseline than the run's own unconditional branch."""
        return float(self.baseline in ("empty", "checkpoint"))

    @abstractmethod
    def map(self, watched: Watched) -> Map:
        """The map of every image."""
        ...


def check_scales(setup: "Setup") -> None:
    """Refuse calls that scale parts of the network, which maps evaluate without that.

    Raises:
        UsageError: naming the argument.
    """
    scaled = sorted({"cross_attention_kwargs", "joint_attention_kwargs"} & setup.sampling.options.keys())
    if scaled:
        raise UsageError(f"maps evaluate the network without {scaled[0]}; merge what it scales into the weights")


def named(name: str, baseline: Against) -> str:
    """The name of a localizer with one of several baselines."""
    return f"{name}-{baseline}" if baseline in ("empty", "checkpoint") else name


def over_channels(values: Tensor, inputs: Inputs) -> Tensor:
    """Sum over channels of values (B, C, h, w), or (B, tokens, channels) of packed latents: (B, h, w), fp32 or wider."""
    values = wide(values)
    if values.dim() == 4:
        return values.sum(dim=1)
    positions: Shared = inputs["img_ids"]
    height, width = (int(last) + 1 for last in positions.value[:, 1:].amax(dim=0))
    # a token holds the 2×2 latents of C channels, channels first
    cells = values.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2)).sum(dim=3)
    return cells.permute(0, 1, 3, 2, 4).reshape(len(values), 2 * height, 2 * width)


def unknown(localizer: Localizer, trajectory: Trajectory) -> Map:
    """The map of images for which the network's output is not finite: NaN everywhere.

    Args:
        localizer: that could not compute the map.
        trajectory: of the images, with the tensors of the localizer's evaluations.
    """
    step = trajectory.step(localizer.evaluations[0])
    return Map(torch.full_like(over_channels(step.cond.x, step.cond_inputs), torch.nan, device="cpu"))


def subtractable(prediction: Prediction, formed: Tensor) -> Tensor | None:
    """`formed`, computed from a recorded prediction, unless the network's output has fewer bits than its input.

    Under autocast it has. A finite difference would then subtract the rounding from what was computed without it.
    """
    return formed if prediction.value.dtype == prediction.x.dtype else None


def wide(values: Tensor) -> Tensor:
    """`values`, in single precision if they are in half."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def finite(maps: Tensor) -> Tensor:
    """`maps`, if every number in them is finite.

    Raises:
        NotFiniteError: otherwise.
    """
    if not torch.isfinite(maps).all():
        raise NotFiniteError("the map is not finite, so the model's output is not; check its weights and dtype")
    return maps
