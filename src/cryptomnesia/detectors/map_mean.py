"""The spatial mean of a map as a score (arXiv:2605.26756): how much of a picture is memorized, wherever that is.

A map asks the network more than a run tells by itself, so it is computed while the run goes on, as soon as the
evaluations that it needs are over: `collapse` three tenths into the run, where a guard can already decide by it. All
images get the same probes, in whatever batch they are.

Every registered localizer that needs no captions and no checkpoint is such a detector, under its own name.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector, check_evaluations
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import Localizer, Watched, map_where_finite
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.registry import Requirement
from cryptomnesia.tracing.trajectory import Place, Signal, Trajectory, evaluation

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class MapSignal:
    """The map of a localizer, in the map's unit, ≥ 0."""

    localizer: Localizer

    @property
    def name(self) -> str:
        """The localizer's."""
        return self.localizer.name

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """Those that the localizer looks at."""
        return self.localizer.evaluations

    def describe(self) -> str:
        """Everything that changes the map."""
        return self.localizer.describe()

    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The map of every image, (B, h, w) float32; NaN for an image for which the network's output is not finite."""
        return map_where_finite(self.localizer, Watched(trajectory, denoiser)).values.cpu().float()


@dataclass(frozen=True)
class MapMean(Detector):
    """The spatial mean of a localizer's map, ≥ 0 in its unit."""

    localizer: Localizer

    source = "arXiv:2605.26756"

    @property
    def name(self) -> str:
        """The localizer's."""
        return self.localizer.name

    @property
    def summary(self) -> str:
        """What is averaged."""
        return f"The spatial mean of the map `{self.name}`."

    @property
    def use_when(self) -> str:
        """The general case."""
        return (
            "You compute the map anyway, or want the detector of arXiv:2605.26756. It is known as soon as the map's "
            "evaluations are over."
        )

    @property
    def avoid_when(self) -> str:
        """The general case."""
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
        """What the map observes."""
        return self.localizer.observes

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The map."""
        return frozenset({self.name})

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The map."""
        return (MapSignal(self.localizer),)

    def check(self, setup: "Setup") -> None:
        """Refuse what the localizer refuses, and maps that cannot be computed while a run goes on.

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
        """The mean, and everything that changes the map."""
        return f"mean of {self.localizer.describe()}"

    def cost(self, setup: "Setup") -> float:
        """The cost of the map."""
        return self.localizer.cost(setup)

    def earliest(self, evaluations: int) -> int:
        """The number of evaluations after which there is a map."""
        return 1 + max(evaluation(place, evaluations) for place in self.localizer.evaluations)

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The mean once there is a map and 0 before, (B, N); NaN where there is none."""
        check_evaluations(runs, references)
        scores = torch.zeros_like(runs.norms["z"])
        maps = runs.signals.get(self.name)
        means = torch.tensor([torch.nan]) if maps is None else maps.double().flatten(1).mean(dim=1).float()
        scores[:, self.earliest(len(runs.timesteps)) - 1 :] = means[:, None]
        return scores


def during_run(localizer: Localizer) -> bool:
    """Whether a map can be computed while a run goes on, from the run and the network alone."""
    return not localizer.requires & {"captions", "checkpoint"}
