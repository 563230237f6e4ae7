"""What a localizer is: from a watched generation to a map of what is memorized."""

from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn.functional import interpolate

from cryptomnesia.denoiser import Denoiser
from cryptomnesia.errors import UsageError
from cryptomnesia.trajectory import Step, Trajectory


class Localizer(Protocol):
    """A map over the picture, ≥ 0, higher = more memorized."""

    name: ClassVar[str]

    def map(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The map of every image, (B, h, w) at latent resolution."""
        ...


def upsampled(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, h, w) at picture resolution by bilinear interpolation, (B, height, width)."""
    return interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]


def both_branches(step: Step) -> Step:
    """`step`, if it has an unconditional branch.

    Raises:
        UsageError: for a generation without guidance.
    """
    if step.uncond is None:
        raise UsageError(
            "the run has no unconditional branch, which is the baseline of this map; generate with guidance above 1"
        )
    return step
