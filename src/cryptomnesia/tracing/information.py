"""What a caption tells about a picture from one noise level to the next, in nats.

At a signal-to-noise ratio snr = α²/σ², the estimates of the clean latents with and without the caption differ by
‖x̂_0,c − x̂_0,u‖². By the relation of information and estimation error (Guo, Shamai & Verdú, 2005; for diffusion models
Kong et al., ICLR 2024, arXiv:2310.07972), half of this difference, integrated over snr, is what the caption tells about
the picture, log p(x|c)/p(x). With the predicted noise it is ½∫‖ε_c − ε_u‖² d log snr.
"""

import math
from collections.abc import Callable

from torch import Tensor

from cryptomnesia.tracing.trajectory import Step


def gained(step: Step, previous: Step | None, squared: Callable[[Step], Tensor], until: float) -> Tensor:
    """The nats between two evaluations, ≥ 0, shaped like what `squared` gives.

    Args:
        step: the later evaluation.
        previous: the earlier one; None for the part before the first evaluation, where the difference of the estimates
            is taken to be what it is at `step`.
        squared: (ε_c − ε_u)² of an evaluation, summed over the entries of the latents that belong together.
        until: the signal-to-noise ratio at which the integral ends.
    """
    here, end = _log_snr(step), math.log(until)
    if previous is None or _log_snr(previous) == -math.inf:
        return 0.5 * math.exp(min(0.0, end - here)) * squared(step)
    before = _log_snr(previous)
    if before >= end or here <= before:
        # a solver that looks twice at a noise level learns nothing in between
        return 0 * squared(step)
    share = min(1.0, (end - before) / (here - before))
    # the trapezoid up to the end of the integral
    return 0.25 * (here - before) * share * ((2 - share) * squared(previous) + share * squared(step))


def noise_scale(step: Step) -> float:
    """What a difference of the network's outputs has to be multiplied by to be one of the predicted noise.

    Outputs are subtracted, and not predictions that were computed from them, so that nothing is lost in half precision.
    """
    cond = step.cond
    return {"epsilon": 1.0, "sample": cond.alpha / cond.sigma}.get(cond.kind, cond.alpha)


def _log_snr(step: Step) -> float:
    """log(α²/σ²), -∞ for nothing but noise."""
    return 2 * math.log(step.cond.alpha / step.cond.sigma) if step.cond.alpha > 0 else -math.inf
