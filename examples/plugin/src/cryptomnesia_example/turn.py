"""Turn: a run that knows its picture goes there without a turn.

The solver's latents move a little at every evaluation. While the model still chooses among many pictures, each movement
points elsewhere than the one before. If only one picture is left, the movements agree.

The norm `turn` is 1 − cos of the angle between two movements that follow each other, from 0 (straight on) to 2 (back).
The score is how many standard deviations of the reference runs the mean so far lies below their mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia import Detector, Step, Trajectory
from cryptomnesia.detectors import Moments


@dataclass(frozen=True)
class TurnNorm:
    """1 − cos of the angle between the movement of the latents and the one before, (B,); NaN at the first."""

    name = "turn"

    def __call__(self, step: Step, latents: Tensor, previous: Step | None) -> Tensor:
        """Called at every evaluation, with the latents before it in `step.sample` and after it in `latents`."""
        if previous is None:
            return torch.full((len(latents),), torch.nan)
        now, before = (
            movement.flatten(1).float() for movement in (latents - step.sample, step.sample - previous.sample)
        )
        return 1 - torch.cosine_similarity(now, before)


@dataclass(frozen=True)
class Turn(Detector):
    """How straight the run has been so far, in standard deviations of the reference runs.

    Attributes:
        skip: evaluations at the beginning that do not count, at least the first, before which nothing moved.
    """

    skip: int = 1

    name = "turn"
    summary = "How straight the latents go, compared with those of ordinary prompts."
    source = "cryptomnesia-example"
    use_when = "The solver adds no noise of its own, and there is no unconditional branch."
    avoid_when = "The solver adds noise at every step (DDPM, ancestral): then every run turns all the time."
    reads = frozenset({"turn"})
    norms = (TurnNorm(),)

    def earliest(self, evaluations: int) -> int:
        """The first evaluation that counts, one after the last that is left out."""
        return self.skip + 1

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score of every image after each evaluation, (B, N); 0 before there is one."""
        mean = self._mean_so_far(runs)
        usual = Moments.of(self._mean_so_far(references))
        return torch.cat([torch.zeros(len(mean), self.skip), -usual.z_scores(mean)], dim=1)

    def _mean_so_far(self, runs: Trajectory) -> Tensor:
        turns = runs.norms["turn"][:, self.skip :]
        return turns.cumsum(dim=1) / torch.arange(1, turns.shape[1] + 1)
