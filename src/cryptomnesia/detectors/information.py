"""Information: how many nats the caption tells about the picture while noise still hides it. A method of this library.

At a signal-to-noise ratio snr = α²/σ², the estimates of the clean latents with and without the caption differ by
‖x̂_0,c − x̂_0,u‖². By the relation of information and estimation error (Guo, Shamai & Verdú, 2005; for diffusion models
Kong et al., ICLR 2024, arXiv:2310.07972), half of this difference, integrated over snr, is what the caption tells about
the picture, log p(x|c)/p(x), in nats. With the predicted noise it is ½∫‖ε_c − ε_u‖² d log snr.

The integral ends at snr = 1, where signal and noise are equal. Below it the outlines of the picture are settled. A
caption that fixes a plain ground tells one thing, which the picture itself tells soon; a memorized caption tells every
detail. Above it, the branches see the picture nearly as well without the caption, and differ mostly by their errors.

It is the published guidance magnitude (arXiv:2407.21720) with the weights that make it a quantity of information.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.detectors.base import Detector
from cryptomnesia.pipelines.denoiser import Prediction, norms
from cryptomnesia.pipelines.setup import Requirement
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
        here, end = _snr(step.cond), math.log(self.until)
        if previous is None or _snr(previous.cond) == -math.inf:
            # towards more noise the difference of the estimates stays what it is here, and snr falls to zero
            first = 0.5 * _difference(step)
            return first if here <= end else first * math.exp(end - here)
        before = _snr(previous.cond)
        if before >= end or here <= before:
            # a solver that looks twice at a noise level learns nothing in between
            return 0 * _difference(step)
        share = min(1.0, (end - before) / (here - before))
        first, last = _difference(previous), _difference(step)
        # the trapezoid up to the end of the integral
        return 0.25 * (here - before) * share * ((2 - share) * first + share * last)


def _snr(prediction: Prediction) -> float:
    """log(α²/σ²), -∞ for nothing but noise."""
    return 2 * math.log(prediction.alpha / prediction.sigma) if prediction.alpha > 0 else -math.inf


def _difference(step: Step) -> Tensor:
    """‖ε_c − ε_u‖² of every image, (B,); NaN without an unconditional branch."""
    cond, uncond = step.cond, step.uncond
    if uncond is None:
        return norms(cond.value) * math.nan
    # what is subtracted is the network's output, so that nothing is lost in half precision
    scale = {"epsilon": 1.0, "sample": cond.alpha / cond.sigma}.get(cond.kind, cond.alpha)
    return (scale * norms(cond.value - uncond.value)) ** 2


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
