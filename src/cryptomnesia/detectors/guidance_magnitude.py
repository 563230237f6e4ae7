"""Guidance magnitude (Wen et al., ICLR 2024, arXiv:2407.21720): memorized captions pull harder.

The score is the mean over the first n evaluations of ‖ε_c − ε_u‖₂; n = 1 is the paper's first-step variant, all
evaluations its full one. At the last evaluation alone it ranks images as the spatial mean of Δs does, the score of the
maps of arXiv:2605.26756 (Σ (s_c − s_u)² = ‖ε_c − ε_u‖²/σ², with one σ for all images).

For networks that predict v or a flow, the difference of the predicted values is taken: at the dark end of a schedule ε
is x, whatever the caption says.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector
from cryptomnesia.registry import Requirement
from cryptomnesia.tracing.trajectory import Trajectory

LAST = "guidance at the last evaluation"
"""What `guidance-last`, Δs and the guidance map are made from."""


@dataclass(frozen=True)
class GuidanceMagnitude(Detector):
    """Mean ‖Δε_t‖ over the evaluations `over`: the `first`, all so far (`mean`), or the newest (`last`); ≥ 0, in latent
    units.
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
        """What is averaged."""
        of = {"first": "at the first step", "mean": "averaged over the steps so far", "last": "at the newest step"}
        return f"How far the conditional and the unconditional prediction are apart, {of[self.over]}."

    @property
    def use_when(self) -> str:
        """The case for the evaluations that are averaged."""
        return {
            "first": "You have to decide after one evaluation, before anything is generated.",
            "mean": "You want the most robust of the scores that cost nothing; it was so on every model that we tried.",
            "last": "You compare with the spatial mean of Δs, which ranks images alike.",
        }[self.over]

    @property
    def avoid_when(self) -> str:
        """The case against them."""
        return {
            "first": "You can wait: `guidance-mean` tells more.",
            "mean": "The runs have no unconditional branch (Flux, unconditional models, guidance 1); use `stability` or "
            "`drift` there.",
            "last": "You can use the other evaluations: `guidance-mean` tells more.",
        }[self.over]

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch."""
        return frozenset({"guidance"})

    @property
    def observes(self) -> str:
        """At the last evaluation the same as Δs and the guidance map."""
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
        """The mean of every image, (B,); NaN where the run was cut short before the evaluations that count."""
        if self.over == "first":
            return self.running(runs, references)[:, -1].clone()
        return super().score(runs, references)


def first() -> GuidanceMagnitude:
    """`guidance-first`."""
    return GuidanceMagnitude("first")


def last() -> GuidanceMagnitude:
    """`guidance-last`."""
    return GuidanceMagnitude("last")
