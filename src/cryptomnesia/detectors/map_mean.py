"""The spatial mean of a map as a score (arXiv:2605.26756): how much of a picture is memorized, wherever that is.

The map asks the network more than a run tells by itself, so it is made while the run goes on, as soon as the
evaluations that it looks at are over (`watch(signals=…)`): of `collapse` three tenths into the run, where a guard may
already decide by it. All images meet the same probes, whoever asks and in whatever batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import NOTHING, UNCOND, Need, check_evaluations
from cryptomnesia.errors import NotFiniteError
from cryptomnesia.localizers import Localizer, Watched
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.tracing.trajectory import Place, Trajectory, evaluation


@dataclass(frozen=True)
class MapSignal:
    """The spatial mean of a localizer's map, in the map's unit, ≥ 0."""

    localizer: Localizer

    @property
    def name(self) -> str:
        """The localizer's."""
        return self.localizer.name

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """Those that the localizer looks at."""
        return self.localizer.evaluations

    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The mean of every image, (B,) float32, NaN where the network's output is not finite."""
        try:
            return self.localizer.map(Watched(trajectory, denoiser)).cpu().double().flatten(1).mean(dim=1).float()
        except NotFiniteError:
            pass
        rows = [*range(len(trajectory.latents))]
        if len(rows) == 1:
            return torch.tensor([torch.nan])
        half = len(rows) // 2
        return torch.cat([self(trajectory.rows(some), denoiser) for some in (rows[:half], rows[half:])])


@dataclass(frozen=True)
class MapMean:
    """The spatial mean of a map, ≥ 0 in its unit, of runs of `count` evaluations."""

    localizer: Localizer
    count: int

    @property
    def name(self) -> str:
        """The localizer's."""
        return self.localizer.name

    @property
    def needs(self) -> frozenset[Need]:
        """The unconditional branch, if the map is a difference from it."""
        return UNCOND if self.localizer.differs else NOTHING

    @property
    def earliest(self) -> int:
        """Evaluations after which there is a map."""
        return 1 + max(evaluation(place, self.count) for place in self.localizer.evaluations)

    def running(self, trajectory: Trajectory) -> Tensor:
        """The mean once there is a map, 0 before, (B, N); NaN where none was made."""
        check_evaluations(trajectory, self.count)
        found = torch.zeros_like(trajectory.norms.z)
        known = trajectory.signals.get(self.name, torch.tensor([torch.nan]))
        found[:, self.earliest - 1 :] = known[:, None]
        return found

    def score(self, trajectory: Trajectory) -> Tensor:
        """The mean of every image, (B,); NaN for a run that was cut short."""
        running = self.running(trajectory)
        return running[:, -1] if trajectory.complete else torch.full_like(running[:, -1], torch.nan)
