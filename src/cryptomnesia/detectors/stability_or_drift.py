"""Stability or drift, whichever is more unusual at equal detail; for models without captions.

A method of this library. The stability score (arXiv:2605.22050) fails under some solvers, and `drift` on some models.
Both grow with how plain a picture is, for an innocent reason. So over the reference runs the logarithm of each is
fitted by a quadratic function of the log detail of the picture, as in `combined`, and what is above the fit counts, as
z-scores. The score is the larger one. References are judged by the same larger one, so that its p-value holds however
the two depend on each other.

Of several combinations this one was chosen on the grounds `scenes` and `drawings` under PNDM and DDIM.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector, check_evaluations
from cryptomnesia.detectors.combined import logarithm, unexplained
from cryptomnesia.detectors.drift import Drift
from cryptomnesia.detectors.stability import Stability
from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Trajectory


@dataclass(frozen=True)
class StabilityOrDrift(Detector):
    """The larger of two z-scores at equal detail: of stability, and of drift."""

    name = "stability-or-drift"
    summary = "Stability or drift against pictures of equal detail, whichever is more unusual."
    source = "this library, from arXiv:2605.22050"
    use_when = "The model takes no captions, or the runs begin from a picture and have no unconditional branch."
    avoid_when = (
        "The runs have an unconditional branch; `combined` takes fewer plain pictures for memorized. Captions that fix "
        "most pixels mislead this detector. It was chosen on runs with guidance; without it, it catches few memorized "
        "pictures of the ground `drawings`, so compare it with others on your model."
    )
    reads = frozenset({"delta", "detail", "drift", "x0"})

    @property
    def observes(self) -> str:
        """The norms of the run, as `stability` does: the two do not corroborate each other."""
        return "stability"

    def earliest(self, evaluations: int) -> int:
        """2, because an estimate can have moved only from the second evaluation on."""
        return 2

    def check(self, setup: Setup) -> None:
        """Refuse runs of one evaluation.

        Raises:
            UsageError: naming the detector to use instead.
        """
        if setup.evaluations == 1:
            raise UsageError(f"{self.name} needs two evaluations, and the run has one; use `stability`, or more steps")

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score after every evaluation, (B, N)."""
        check_evaluations(runs, references)
        detail, usual_detail = (logarithm(of.norms["detail"]) for of in (runs, references))
        stability, drift = (
            unexplained(
                logarithm(judge.running(runs, references)),
                detail,
                logarithm(judge.running(references, references)),
                usual_detail,
            )
            for judge in (Stability(), Drift())
        )
        return torch.maximum(stability, drift).float()
