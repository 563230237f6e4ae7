"""Information: how many nats the caption tells about the picture while noise still hides it. A method of this library.

The score is ½∫‖ε_c − ε_u‖² d log snr over the signal-to-noise ratio snr = α²/σ². The module
`cryptomnesia.tracing.information` says why this is a quantity of information (arXiv:2310.07972).

The integral ends at snr = 1, where signal and noise are equal. Below it the outlines of the picture are settled. A
caption that fixes a plain ground tells one thing, which the picture itself tells soon; a memorized caption tells every
detail. Above it, the branches see the picture nearly as well without the caption, and differ mostly by their errors.

It is the published guidance magnitude (arXiv:2407.21720) with the weights that make it a quantity of information.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.detectors.base import Detector
from cryptomnesia.pipelines.denoiser import norms
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.information import gained, noise_scale
from cryptomnesia.tracing.trajectory import Norm, Step, Trajectory


@dataclass(frozen=True)
class Gain:
    """The norm `information`: what the caption tells from one evaluation to the next, in nats, ≥ 0.

    Attributes:
        until: the signal-to-noise ratio at which the integral ends.
    """

    until: float = 1.0

    name = "information"

    def __call__(self, step: Step, latents: Tensor, previous: Step | None) -> Tensor:
        """The nats of every image, (B,); NaN without an unconditional branch."""
        return gained(step, previous, _squared, self.until)


def _squared(step: Step) -> Tensor:
    """‖ε_c − ε_u‖² of every image, (B,); NaN without an unconditional branch."""
    if step.uncond is None:
        return norms(step.cond.value) * math.nan
    return (noise_scale(step) * norms(step.cond.value - step.uncond.value)) ** 2


@dataclass(frozen=True)
class Information(Detector):
    """½∫‖ε_c − ε_u‖² d log snr of the evaluations so far, ≥ 0, in nats.

    Attributes:
        until: the signal-to-noise ratio at which the integral ends.
    """

    until: float = 1.0

    name = "information"
    summary = "How many nats the caption tells about the picture while noise still hides it."
    source = "this library, from arXiv:2407.21720 and arXiv:2310.07972"
    use_when = "The runs have an unconditional branch, and captions that fix most pixels must not be flagged."
    avoid_when = (
        "The runs have no unconditional branch (Flux, unconditional models, guidance 1); use `stability` there."
    )

    reads = frozenset({"information"})

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    @property
    def norms(self) -> tuple[Norm, ...]:
        """What every evaluation adds."""
        return (Gain(self.until),)

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The nats so far, (B, N); NaN without an unconditional branch."""
        return runs.norms["information"].cumsum(dim=1)
