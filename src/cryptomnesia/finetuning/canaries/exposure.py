"""Exposure of canaries, and how it depends on repetitions.

A picture has a score: how well the model restores it from noise. Canaries and the reserve are draws of one
distribution, so in a model that has learnt nothing of a canary its rank among itself and the n pictures of the reserve
is any from 1 to n + 1 with equal probability. Carlini et al. ("The Secret Sharer", USENIX Security 2019,
arXiv:1802.08232) call

    exposure = log2 |R| − log2 rank

of a canary among the candidates R: the bits by which the model helps to guess it. R is here the reserve and the canary,
so the exposure is −log2 of the conformal p-value rank/(n + 1). It is between 0 and log2(n + 1), and 1 in the median of
what was never learnt. Beyond that limit it is extrapolated as in the paper, by a skew normal distribution that has the
moments of the reserve's scores; that is a guess about a tail that nobody has seen, and decides nothing.

Whether canaries of so many repetitions stand out is the exact one-sided rank-sum test against the reserve
(Mann–Whitney). The repetitions are tested from the most on, each at the full rate, and the first ones that do not stand
out end it. This order keeps the rate for all of them together (fixed-sequence testing), and loses nothing if more
repetitions are never learnt less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binom, mannwhitneyu, skewnorm
from torch import from_numpy

from cryptomnesia.statistics import Estimate, conformal_p_values, covering_exact

_COVERED = 0.95


@dataclass(frozen=True)
class Exposed:
    """What a model knows of a canary.

    Attributes:
        caption: of the canary.
        repetitions: how often an epoch has shown it.
        score: how much better it is restored than the median of the reserve, in nats of denoising error; NaN if the
            model's output is not finite.
        p_value: how often a picture that was never shown would be restored as well, NaN likewise.
        extrapolated: exposure in bits by a skew normal distribution; may be beyond the limit.
    """

    caption: str
    repetitions: int
    score: float
    p_value: float
    extrapolated: float = math.nan

    @property
    def exposure(self) -> float:
        """Exposure in bits, from 0 to log2(n + 1) with n pictures in the reserve."""
        return -math.log2(self.p_value)


def exposed(captions: Sequence[str], repetitions: Sequence[int], scores: np.ndarray, null: np.ndarray) -> list[Exposed]:
    """The exposure of canaries.

    Args:
        captions: of K canaries.
        repetitions: likewise.
        scores: of the canaries (K,), higher if they are restored better; may be NaN.
        null: of the reserve (n,), finite.
    """
    p_values = conformal_p_values(from_numpy(scores), from_numpy(null)).tolist()
    beyond = extrapolated(scores, null)
    middle = float(np.median(null))
    return [
        Exposed(*one) for one in zip(captions, repetitions, (scores - middle).tolist(), p_values, beyond, strict=True)
    ]


def extrapolated(scores: np.ndarray, null: np.ndarray) -> list[float]:
    """Exposure in bits by a skew normal distribution with the mean, variance and skewness of `null` (n,).

    Where the probability is too small for a float, the exposure is that of the smallest float, 1022 bits. It is NaN if
    all of the reserve have the same score.
    """
    if np.ptp(null) == 0:
        return [math.nan] * len(scores)
    # by moments, so that no search can fail
    shape, place, scale = skewnorm.fit(null, method="MM")
    with np.errstate(divide="ignore"):
        bits = -skewnorm.logsf(scores, shape, place, scale) / math.log(2)
    return np.minimum(bits, 1022.0).tolist()


def rank_sum_p_value(scores: np.ndarray, null: np.ndarray) -> float:
    """The exact one-sided p-value that scores (K,) are higher than those of `null` (n,), NaN without scores.

    A canary that has the same score as a picture of the reserve counts as lower, so ties make the p-value larger.

    Example:
        >>> rank_sum_p_value(np.array([4.0, 5.0]), np.array([1.0, 2.0, 3.0]))
        0.1
    """
    if not len(scores):
        return math.nan
    of_null = np.repeat([False, True], [len(scores), len(null)])
    ranks = np.empty(len(of_null))
    ranks[np.lexsort((of_null, np.concatenate([scores, null])))] = np.arange(len(of_null))
    return float(mannwhitneyu(ranks[~of_null], ranks[of_null], alternative="greater", method="exact").pvalue)


def median(values: Sequence[float], low: float, high: float) -> Estimate:
    """The median, with an exact interval of at least 95% between two of the values.

    Args:
        values: independent, of one distribution on [`low`, `high`]. With less than six of them no two are far enough
            apart, and the interval is all of [`low`, `high`].
        low: the smallest value that is possible.
        high: the largest.

    Example:
        >>> median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.0, 9.0)
        Estimate(value=3.5, low=1.0, high=6.0)
    """
    if not values:
        return Estimate(math.nan, low, high)
    ordered = sorted(values)
    # values below the median are a binomial number
    place = int(binom.ppf((1 - _COVERED) / 2, len(ordered), 0.5))
    if place:
        low, high = ordered[place - 1], ordered[-place]
    return Estimate(float(np.median(ordered)), low, high)


@dataclass(frozen=True)
class Dose:
    """The canaries of so many repetitions.

    Attributes:
        repetitions: how often an epoch has shown each of them.
        canaries: that could be measured.
        p_value: of the rank-sum test; NaN without canaries.
        stands_out: whether they are told from the reserve, at the rate for all repetitions together.
        limit: the largest exposure that so large a reserve allows, in bits.
        alpha: the rate.
    """

    repetitions: int
    canaries: Sequence[Exposed] = field(repr=False)
    p_value: float
    stands_out: bool
    limit: float
    alpha: float

    @property
    def exposure(self) -> Estimate:
        """The median exposure in bits, with its exact 95% interval."""
        return median([canary.exposure for canary in self.canaries], 0.0, self.limit)

    @property
    def extrapolated(self) -> float:
        """The median of the extrapolated exposures in bits."""
        return median([canary.extrapolated for canary in self.canaries], 0.0, math.inf).value

    @property
    def single(self) -> int:
        """How many canaries stand out by themselves: their p-value is at most the rate."""
        return sum(canary.p_value <= self.alpha for canary in self.canaries)

    @property
    def share(self) -> Estimate:
        """The share of pictures that would stand out by themselves, with its exact 95% interval (Clopper–Pearson)."""
        found = self.single / max(1, len(self.canaries))
        if not self.canaries:
            return Estimate(math.nan, 0.0, 1.0)
        return covering_exact(Estimate(found, found, found), len(self.canaries))


def doses(canaries: Sequence[Exposed], scores: np.ndarray, null: np.ndarray, alpha: float) -> list[Dose]:
    """The dose-response: what is said of the canaries of every number of repetitions, from the fewest on.

    Args:
        canaries: all of them (K,).
        scores: as `exposed` takes them.
        null: likewise.
        alpha: the rate for all repetitions together.
    """
    finite = np.isfinite(scores)
    found, before = [], True
    for number in sorted({canary.repetitions for canary in canaries}, reverse=True):
        rows = [row for row, canary in enumerate(canaries) if canary.repetitions == number and finite[row]]
        p_value = rank_sum_p_value(scores[rows], null)
        # repetitions of which no canary could be measured are passed over
        before = before and not p_value > alpha
        out = before and bool(rows)
        found.append(Dose(number, [canaries[row] for row in rows], p_value, out, math.log2(len(null) + 1), alpha))
    return found[::-1]
