"""What a localizer is: from a watched generation to a map of what is memorized."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cryptomnesia.errors import NotFiniteError, UsageError
from cryptomnesia.localizers.baseline import Baseline
from cryptomnesia.pipelines.denoiser import Denoiser, Inputs, Prediction
from cryptomnesia.pipelines.families import Shared
from cryptomnesia.tracing.trajectory import Place, Step, Trajectory


@dataclass(frozen=True)
class Watched:
    """A generation to be mapped.

    Attributes:
        trajectory: with the tensors of the step in question.
        denoiser: the model.
        baseline: what does not remember; None for the run's own unconditional branch.
        ends: position of the end token in every caption, (B,) int; for attention maps.
        seeds: one per image, for random probes of its own; None for the same in all images.
    """

    trajectory: Trajectory
    denoiser: Denoiser
    baseline: Baseline | None = None
    ends: Tensor | None = None
    seeds: Sequence[int] | None = None

    def rows(self, rows: list[int]) -> "Watched":
        """The generation of some of the images."""
        return Watched(
            self.trajectory.rows(rows),
            self.denoiser,
            None if self.baseline is None else self.baseline.rows(rows),
            None if self.ends is None else self.ends[rows],
            None if self.seeds is None else [self.seeds[row] for row in rows],
        )

    def against(self, step: Step) -> Baseline:
        """The baseline at a step.

        Raises:
            UsageError: where there is none.
        """
        if self.baseline is not None:
            return self.baseline
        if step.uncond is None or step.uncond_inputs is None:
            raise UsageError(
                "the run has no unconditional branch, which is the baseline of this map; generate with guidance "
                "above 1, or give another baseline: `empty_caption` or `checkpoint`"
            )
        return Baseline(self.denoiser, step.uncond_inputs, step.uncond)


class AtStep:
    """A localizer that looks at one evaluation."""

    step: Place

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """That one."""
        return (self.step,)


class Localizer(Protocol):
    """A map over the picture, ≥ 0, higher = more memorized.

    Attributes:
        name: on the command line and in results.
        step: the evaluation that is looked at.
        evaluations: all whose tensors must have been kept; the first is the one that is compared with a baseline.
        differs: whether there is a baseline.
    """

    name: ClassVar[str]
    differs: ClassVar[bool]

    @property
    def step(self) -> Place:
        """The evaluation that is looked at."""
        ...

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """All whose tensors must have been kept."""
        ...

    def map(self, watched: Watched) -> Tensor:
        """The map of every image, (B, h, w) at latent resolution."""
        ...


def over_channels(values: Tensor, inputs: Inputs) -> Tensor:
    """Σ over channels of values (B, C, h, w), or (B, tokens, channels) of packed latents: (B, h, w), `wide`."""
    values = wide(values)
    if values.dim() == 4:
        return values.sum(dim=1)
    positions: Shared = inputs["img_ids"]
    height, width = (int(last) + 1 for last in positions.value[:, 1:].amax(dim=0))
    # a token holds the 2×2 latents of C channels, channels first
    cells = values.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2)).sum(dim=3)
    return cells.permute(0, 1, 3, 2, 4).reshape(len(values), 2 * height, 2 * width)


def upsampled(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, h, w) at picture resolution by bilinear interpolation, (B, height, width)."""
    return interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]


def subtractable(prediction: Prediction, formed: Tensor) -> Tensor | None:
    """What was `formed` from a recorded prediction, unless the network gave that in fewer bits than its input has.

    So it does under autocast. A finite difference would subtract the rounding from what was computed without.
    """
    return formed if prediction.value.dtype == prediction.x.dtype else None


def wide(values: Tensor) -> Tensor:
    """`values`, in single precision if they came in half."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def finite(maps: Tensor) -> Tensor:
    """`maps`, if every number in them is finite.

    Raises:
        NotFiniteError: otherwise.
    """
    if not torch.isfinite(maps).all():
        raise NotFiniteError("the map is not finite, so the model's output is not; check its weights and dtype")
    return maps
