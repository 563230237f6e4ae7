"""Guidance magnitude (Wen et al., ICLR 2024, arXiv:2407.21720): a memorized caption changes the prediction more.

The score is the mean of ‖ε_c − ε_u‖₂ over the first n evaluations. The paper uses n = 1 and all evaluations. At the
last evaluation alone, the norm ranks images in the same order as the spatial mean of Δs, the score of
arXiv:2605.26756: Σ (s_c − s_u)² = ‖ε_c − ε_u‖²/σ², and σ is the same for all images.

For networks that predict v or a flow, the difference between the predicted values is used. Their ε says little at the
noisy end of a schedule, where it is nearly x whatever the caption is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.trajectory import Trajectory

LAST = "guidance at the last evaluation"
"""The quantity that `guidance-last`, Δs and the guidance map are computed from."""


@dataclass(frozen=True)
class GuidanceMagnitude(Detector):
    """Mean of ‖ε_c − ε_u‖ over evaluations of a run, ≥ 0, in latent units.

    Attributes:
        over: the evaluations: the `first` alone, all so far (`mean`), or the newest alone (`last`).
    """

    over: Literal["first", "mean", "last"] = "mean"

    source = "arXiv:2407.21720"
    reads = frozenset({"guidance"})

    @property
    def name(self) -> str:
        """`guidance-first`, `guidance-mean` or `guidance-last`."""
        return f"guidance-{self.over}"

    @property
    def summary(self) -> str:
        """What the detector measures, in one sentence."""
        of = {"first": "at the first step", "mean": "averaged over the steps so far", "last": "at the newest step"}
        return f"How far the conditional and the unconditional prediction are apart, {of[self.over]}."

    @property
    def use_when(self) -> str:
        """When to use these evaluations."""
        return {
            "first": "You have to decide after a single evaluation.",
            "mean": "The runs have an unconditional branch, and you want a published score that costs nothing. On the "
            "bundled model it depends little on the scheduler, and captions that fix most pixels mislead it less than "
            "they mislead `drift` and `stability`.",
            "last": "You compare with the spatial mean of Δs, which ranks images in the same order.",
        }[self.over]

    @property
    def avoid_when(self) -> str:
        """When not to use these evaluations."""
        return {
            "first": "You can wait: `guidance-mean` separates better on the bundled model.",
            "mean": "The runs have no unconditional branch (Flux, unconditional models, guidance 1); use `stability` "
            "or `drift` there.",
            "last": "You can use the other evaluations: `guidance-mean` separates better on the bundled model.",
        }[self.over]

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    @property
    def observes(self) -> str:
        """For the last evaluation the same quantity that Δs and the guidance map are computed from."""
        return LAST if self.over == "last" else self.name

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The mean over the evaluations so far, (B, N); NaN without an unconditional branch."""
        values = runs.norms["guidance"]
        if self.over == "last":
            return values
        if self.over == "first":
            return values[:, :1].expand_as(values)
        return values.cumsum(dim=1) / torch.arange(1, values.shape[1] + 1)

    def score(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The mean of every image, (B,); NaN for a run that ended before the evaluations that count."""
        if self.over == "first":
            return self.running(runs, references)[:, -1].clone()
        return super().score(runs, references)


def first() -> GuidanceMagnitude:
    """Make `guidance-first`, which looks at the first evaluation alone."""
    return GuidanceMagnitude("first")


def last() -> GuidanceMagnitude:
    """Make `guidance-last`, which looks at the newest evaluation alone."""
    return GuidanceMagnitude("last")
