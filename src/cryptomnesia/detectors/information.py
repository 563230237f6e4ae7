"""Information: how many nats the caption tells about the picture while noise still hides it. A method of this library.

The score is ½∫‖ε_c − ε_u‖² d log snr over the signal-to-noise ratio snr = α²/σ², up to snr = 1. The module
`cryptomnesia.tracing.information` says why this is a quantity of information (arXiv:2310.07972).

A caption that fixes a plain ground tells one thing, which the picture itself tells soon; a memorized caption tells
every detail. It is the published guidance magnitude (arXiv:2407.21720) with the weights that make it a quantity of
information, and without the part of the run where only errors of the network are left.
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.detectors.base import Detector
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.trajectory import Trajectory


@dataclass(frozen=True)
class Information(Detector):
    """½∫‖ε_c − ε_u‖² d log snr of the evaluations so far, ≥ 0, in nats."""

    name = "information"
    summary = "How many nats the caption tells about the picture while noise still hides it."
    source = "this library, from arXiv:2407.21720 and arXiv:2310.07972"
    use_when = "The runs have an unconditional branch, and captions that fix most pixels must not be flagged."
    avoid_when = (
        "The runs have no unconditional branch (Flux, unconditional models, guidance 1), or that branch has memorized "
        "pictures itself: then a memorized caption tells it little that is new, as on the ground `drawings`."
    )
    reads = frozenset({"information"})

    @property
    def observes(self) -> str:
        """The difference of the two branches, as `guidance-mean`: the two do not corroborate each other."""
        return "guidance-mean"

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The nats so far, (B, N); NaN without an unconditional branch."""
        return runs.norms["information"].cumsum(dim=1)
