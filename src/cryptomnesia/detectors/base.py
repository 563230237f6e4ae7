"""What a detector is: a pure function from what was seen to one number per image."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.trajectory import Norms, Trajectory

Need = Literal["uncond"]
"""Signals a detector cannot do without; checked before anything is generated."""


class Detector(Protocol):
    """A score, higher = more memorized, NaN = cannot tell."""

    @property
    def name(self) -> str:
        """Its name in `DETECTORS`."""
        ...

    needs: ClassVar[frozenset[Need]]

    def running(self, trajectory: Trajectory) -> Tensor:
        """The score as it stood after every evaluation, (B, N)."""
        ...

    def score(self, trajectory: Trajectory) -> Tensor:
        """The score of every image, (B,)."""
        ...


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation per evaluation over reference images, each (N,)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Reference:
    """Statistics of images that are not memorized: the centre and width of the stability regions.

    Attributes:
        delta: of ‖δ_t‖.
        z: of ‖z_t‖ after the step.
        x0: of ‖x̂_0‖.
        drift: of log‖x̂_0(t) − x̂_0(t+1)‖, conditional; meaningless at the first evaluation.
    """

    delta: Moments
    z: Moments
    x0: Moments
    drift: Moments

    @classmethod
    def fit(cls, norms: Norms) -> "Reference":
        """Estimate the moments from the norms of at least two reference images."""
        moments = {}
        # the first drift is NaN
        drift = logarithm(norms.drift.nan_to_num(nan=1.0))
        for name, values in (("delta", norms.delta), ("z", norms.z), ("x0", norms.x0), ("drift", drift)):
            if len(values) < 2:
                raise UsageError(f"got {len(values)} reference images; give at least 2")
            std = values.std(dim=0)
            # a norm that never varies says nothing; a floor keeps its z-scores finite
            moments[name] = Moments(values.mean(dim=0), std.clamp_min(1e-6 * values.mean(dim=0).abs().clamp_min(1e-6)))
        return cls(**moments)


def logarithm(norms: Tensor) -> Tensor:
    """The logarithm of norms; of one that vanishes, that of a very small one."""
    return norms.clamp_min(1e-12).log()
