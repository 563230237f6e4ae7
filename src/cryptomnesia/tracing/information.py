"""What a caption tells about a picture from one noise level to the next, in nats.

At a signal-to-noise ratio snr = α²/σ², the estimates of the clean latents with and without the caption differ by
‖x̂_0,c − x̂_0,u‖². By the relation of information and estimation error (Guo, Shamai & Verdú, 2005; for diffusion models
Kong et al., ICLR 2024, arXiv:2310.07972), half of this difference, integrated over snr, is on average what the caption
tells about the picture: the mean of log p(x|c)/p(x) over the pictures x of the caption c and their noise. With the
predicted noise it is ½∫‖ε_c − ε_u‖² d log snr. Along one run, which guidance may have changed, it is an estimate of
this kind, and no probability of the picture.

The integral ends at snr = 1, where signal and noise are equal. Below it the outlines of the picture are settled. Above
it the branches see the picture nearly as well without the caption, and differ mostly by their errors.
"""

import math

from torch import Tensor

from cryptomnesia.pipelines.denoiser import Prediction


def log_snr(prediction: Prediction) -> float:
    """log(α²/σ²) of an evaluation, -∞ for nothing but noise."""
    return 2 * math.log(prediction.alpha / prediction.sigma) if prediction.alpha > 0 else -math.inf


def noise_scale(prediction: Prediction) -> float:
    """What a difference of the network's outputs has to be multiplied by to be one of the predicted noise.

    Outputs are subtracted, and not predictions that were computed from them, so that nothing is lost in half precision.
    """
    of_sample = prediction.alpha / prediction.sigma
    return {"epsilon": 1.0, "sample": of_sample}.get(prediction.kind, prediction.alpha)


def gained(before: tuple[float, Tensor] | None, here: tuple[float, Tensor]) -> Tensor:
    """The nats between two evaluations, ≥ 0, shaped like their squared differences.

    Args:
        before: log snr and (ε_c − ε_u)² of the earlier evaluation, summed over the entries of the latents that belong
            together; None for the part before the first evaluation, where the difference of the estimates is taken to
            be what it is at `here`.
        here: the same of the later evaluation.
    """
    level, squared = here
    first, second = shares(None if before is None else before[0], level)
    return second * squared if before is None or first == 0 else first * before[1] + second * squared


def shares(before: float | None, here: float) -> tuple[float, float]:
    """By what the squared differences of two evaluations are multiplied, whose sum is the nats between them.

    Args:
        before: log snr of the earlier evaluation; None for the part before the first evaluation, where the difference
            of the estimates is taken to be what it is at the later one.
        here: log snr of the later evaluation.
    """
    if here == -math.inf:
        return 0.0, 0.0
    if before is None or before == -math.inf:
        # towards more noise snr falls to zero, and (ε_c − ε_u)² with it
        return 0.0, 0.5 * math.exp(min(0.0, -here))
    if before >= 0 or here <= before:
        # a solver that looks twice at a noise level learns nothing in between
        return 0.0, 0.0
    share = before / (before - here) if here > 0 else 1.0
    # the trapezoid up to the end of the integral
    area = 0.25 * (here - before) * share
    return area * (2 - share), area * share
