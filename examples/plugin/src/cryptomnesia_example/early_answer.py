"""Early answer: was the picture known from the beginning?

At every evaluation the network implies an estimate x̂_0 of the finished picture. Early estimates of an ordinary picture
are a blur. If the caption leaves one picture only, the early estimate is that picture already.

The signal `early-answer` is the cosine similarity of an early conditional estimate and the last one, in [−1, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia import Detector, Trajectory


@dataclass(frozen=True)
class EarlyAnswerSignal:
    """The similarity of the estimates at the evaluation `early` and at the last one, (B,) in [−1, 1]."""

    early: float

    name = "early-answer"

    @property
    def evaluations(self) -> tuple[float, int]:
        """The evaluations whose tensors are kept for the signal; a float is a share of the run."""
        return self.early, -1

    def describe(self) -> str:
        """Everything that changes the signal: a calibration with another one is refused."""
        return f"similarity of the estimates at {self.early:g} of the run and at its end"

    def __call__(self, trajectory: Trajectory, denoiser: object) -> Tensor:
        """Called once, after the last of `evaluations`; a signal may also ask the network, `denoiser`."""
        first, last = (trajectory.step(place).cond.x0.flatten(1).float() for place in self.evaluations)
        return torch.cosine_similarity(first, last)


@dataclass(frozen=True)
class EarlyAnswer(Detector):
    """The similarity of an early estimate of the picture and the last one, in [−1, 1].

    Attributes:
        early: the early evaluation, as a share of the run in [0, 1). A smaller one separates better and is noisier.
    """

    early: float = 0.3

    name = "early-answer"
    summary = "How much the model's early estimate of the picture is like its last one."
    source = "cryptomnesia-example"
    use_when = "You judge finished pictures, with any family, with or without guidance."
    avoid_when = "You decide during the run: there is no score before its end."
    reads = frozenset({"early-answer"})

    @property
    def signals(self) -> tuple[EarlyAnswerSignal, ...]:
        """The signal depends on a setting of the detector, so it is made from it."""
        return (EarlyAnswerSignal(self.early),)

    def earliest(self, evaluations: int) -> int:
        """All evaluations."""
        return evaluations

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The signal at the end of the run and 0 before, (B, N); NaN if it was not recorded."""
        scores = torch.zeros(len(runs), runs.evaluations)
        if runs.complete:
            scores[:, -1] = runs.signals.get("early-answer", torch.full((len(runs),), torch.nan))
        return scores
