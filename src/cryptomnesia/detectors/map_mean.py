"""The spatial mean of a map as a score (arXiv:2605.26756): how much of a picture is memorized, at whatever place.

A map takes further evaluations of the network. They are made during the run, as soon as the evaluations that the map
needs are over. The map `collapse` is computed after three tenths of the run, so a guard can decide by it early. All
images get the same random probes, so a score does not depend on the batch.

Every registered localizer that needs neither captions nor a checkpoint is also such a detector, under the same name.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import Localizer, Watched, map_where_finite
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.trajectory import Place, Signal, Trajectory

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class MapSignal:
    """The map of a localizer as a signal of a run, (B, h, w), ≥ 0 in the unit of the map."""

    localizer: Localizer

    @property
    def name(self) -> str:
        """The name of the localizer whose map it is."""
        return self.localizer.name

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """The evaluations whose tensors the localizer needs."""
        return self.localizer.evaluations

    def describe(self) -> str:
        """Everything that changes the map, in words."""
        return self.localizer.describe()

    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The map of every image, (B, h, w) float32; NaN for an image for which the network's output is not finite."""
        return map_where_finite(self.localizer, Watched(trajectory, denoiser)).values.cpu().float()


@dataclass(frozen=True)
class MapMean(Measured):
    """The spatial mean of a localizer's map, ≥ 0 in the unit of the map.

    Attributes:
        localizer: makes the map.
    """

    localizer: Localizer

    source = "arXiv:2605.26756"

    @property
    def name(self) -> str:
        """The name of the localizer whose map it is."""
        return self.localizer.name

    @property
    def summary(self) -> str:
        """What the detector measures, in one sentence."""
        return f"The spatial mean of the map `{self.name}`."

    @property
    def use_when(self) -> str:
        """When to use the mean of a map."""
        return (
            "You compute the map anyway, or want the detector of arXiv:2605.26756. It is known as soon as the map's "
            "evaluations are over."
        )

    @property
    def avoid_when(self) -> str:
        """When not to use the mean of a map."""
        return (
            "Memorized regions are small: the mean over the whole picture hardly shows them. Plain grounds that a "
            "caption legitimately fixes raise it too."
        )

    @property
    def requires(self) -> frozenset[Requirement]:
        """What the map requires."""
        return self.localizer.requires

    @property
    def observes(self) -> str:
        """The quantity that the map is computed from."""
        return self.localizer.observes

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluations whose tensors the localizer needs."""
        return self.localizer.evaluations

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The map of every image, (B, h, w)."""
        return MapSignal(self.localizer)(run, denoiser)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The map as a signal."""
        return (MapSignal(self.localizer),)

    def check(self, setup: "Setup") -> None:
        """Refuse a set-up that the localizer refuses, and a map that cannot be computed during a run.

        Raises:
            UsageError: saying what does not fit.
        """
        if not during_run(self.localizer):
            raise UsageError(
                f"the map {self.name} needs captions or a checkpoint, which are not known while a run goes on; use "
                "another detector"
            )
        self.localizer.check(setup)

    def describe(self) -> str:
        """The words "mean of" and everything that changes the map."""
        return f"mean of {self.localizer.describe()}"

    def cost(self, setup: "Setup") -> float:
        """The cost of computing the map."""
        return self.localizer.cost(setup)


def during_run(localizer: Localizer) -> bool:
    """Whether a map can be computed during a run, from the run and the network alone."""
    return not localizer.requires & {"captions", "checkpoint"}
