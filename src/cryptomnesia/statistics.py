"""Conformal p-values, and figures of merit with confidence intervals that allow for dependence within a prompt.

With n scores of ordinary images, the null, the conformal p-value of a score s is p = (1 + #{null ≥ s})/(n + 1). If the
image with the score s is exchangeable with those of the null, P(p ≤ a) ≤ a for every a, whatever the score measures. A
null of n scores supports false-positive rates down to 1/(n + 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from cryptomnesia.errors import UsageError

_TOLERANCE = 1e-9
"""Rounding error that is allowed for a rate: 0.05 need not be exactly 1/20."""


def conformal_p_values(scores: Tensor, null: Tensor) -> Tensor:
    """Conformal p-values of scores (B,) against those of ordinary images (n,), (B,) float64; NaN for a score of NaN.

    A higher score is more unusual. A score of the null that equals the score counts as at least as unusual.

    Example:
        >>> conformal_p_values(torch.tensor([2.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
        [0.75, 0.25]
    """
    above = (null[None, :] >= scores[:, None]).sum(dim=1)
    return ((1 + above.double()) / (len(null) + 1)).masked_fill(scores.isnan(), torch.nan)


def conformal_threshold(null: Tensor, fpr: float) -> float:
    """The smallest score whose p-value against `null` (n,) is at most `fpr`.

    Raises:
        UsageError: if `fpr` is not between 0 and 1, or `null` is too small for it.
    """
    allowed = flagged_ranks(len(null), fpr) - 1
    highest = null.sort(descending=True).values
    return torch.nextafter(highest[allowed], torch.tensor(torch.inf)).item()


def flagged_ranks(null: int, fpr: float) -> int:
    """How many of the n + 1 ranks that a score can have among a null of n scores are flagged: those with p ≤ `fpr`.

    Raises:
        UsageError: if `fpr` is not between 0 and 1, or the null is too small for it.
    """
    check_rate(fpr)
    ranks = int(fpr * (null + 1) + _TOLERANCE)
    if ranks < 1:
        raise UsageError(
            f"a false-positive rate of {fpr:g} needs at least {needed_null(fpr)} null references, the calibration has "
            f"{null}; ask for {rounded_up(1 / (null + 1))} or more, or calibrate on {needed_references(fpr)} prompts"
        )
    return ranks


def check_rate(fpr: float) -> None:
    """Check that a false-positive rate lies between 0 and 1.

    Raises:
        UsageError: if it does not.
    """
    if not 0 < fpr < 1:
        raise UsageError(f"got the false-positive rate {fpr:g}; give one between 0 and 1")


def needed_null(fpr: float) -> int:
    """The smallest number of scores in a null that supports a false-positive rate."""
    return math.ceil(1 / fpr - _TOLERANCE) - 1


def null_size(references: int) -> int:
    """The number of scores in the null of a calibration: a third of the references shows what is usual instead."""
    return references - references // 3


def needed_references(fpr: float) -> int:
    """The smallest number of reference prompts that supports a false-positive rate; see `null_size`.

    Example:
        >>> needed_references(0.01), needed_references(0.001)
        (148, 1498)
    """
    return math.floor(1.5 * (needed_null(fpr) - 1)) + 1


def rounded_up(rate: float) -> str:
    """A rate with three decimals, rounded up."""
    return f"{math.ceil(rate * 1000 - _TOLERANCE) / 1000:g}"


def discovery_rate(p_values: Sequence[float], fdr: float, *, fpr: float = 1.0) -> float:
    """The rate at which several p-values are judged so that few of those found are false (Benjamini & Hochberg, 1995).

    Of m p-values the k smallest are found, where k is the largest number whose kth smallest p-value is at most both
    `fdr`·k/m and `fpr`. Then the expected share of false ones among those found is at most `fdr`. This holds for
    p-values against one null, which depend on each other through it (Bates et al., 2023), if what they are of is
    otherwise independent.

    Args:
        p_values: NaN for what could not be judged, which is left out.
        fdr: the false-discovery rate, in (0, 1).
        fpr: the largest rate at which any of them is judged.

    Returns:
        `fdr`·k/m, or `fpr` if that is smaller, and never less than the largest p-value that is found. With nothing
        found, what a single p-value would have had to reach.

    Raises:
        UsageError: if `fdr` is not between 0 and 1.

    Example:
        >>> discovery_rate([0.001, 0.02, 0.03, 0.2, 0.9], 0.1)
        0.06...
    """
    if not 0 < fdr < 1:
        raise UsageError(f"got the false-discovery rate {fdr:g}; give one between 0 and 1")
    ordered = sorted(p for p in p_values if not math.isnan(p))
    if not ordered:
        return fpr
    share = fdr / len(ordered)
    found = [k for k, p in enumerate(ordered, start=1) if p <= min(share * k, fpr) + _TOLERANCE]
    rate = min(share * max(found, default=1), fpr)
    # p-values are fractions, so rounding must not decide whether the largest one is found
    return max(rate, ordered[found[-1] - 1]) if found else rate


@dataclass(frozen=True)
class Estimate:
    """A figure and the bounds of its 95% confidence interval.

    Attributes:
        value: the figure.
        low: lower bound.
        high: upper bound.
    """

    value: float
    low: float
    high: float


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve of scores (n,) against scores (m,): P(positive > negative), ties counting half.

    Raises:
        ValueError: for NaN among the scores.
    """
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise ValueError("got NaN among the scores; leave out what could not be judged, and say how many")
    # a bootstrap computes thousands of these, so no curve is made
    below, up_to = (np.searchsorted(np.sort(negative), positive, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negative)))


def tpr_at_fpr(positive: np.ndarray, negative: np.ndarray, fpr: float = 0.01) -> float:
    """True-positive rate at a false-positive rate.

    This is the share of `positive` above the smallest threshold that at most a share `fpr` of `negative` exceeds. It is
    NaN for fewer than 1/`fpr` negatives: no negative might then exceed the threshold, which would be another figure.
    """
    descending = np.sort(negative)[::-1]
    if fpr * len(negative) < 1:
        return float("nan")
    threshold = descending[int(fpr * len(negative))]
    return float((positive > threshold).mean())


def clustered(statistic: Callable[..., float], *groups: list[np.ndarray], draws: int = 1000, seed: int = 0) -> Estimate:
    """A statistic with its 95% percentile bootstrap interval, for which whole clusters are drawn.

    The images of one prompt are not independent, so a prompt is a cluster. The interval shrinks to a point if all
    samples give the same figure, an AUC of 1 for instance. Samples for which the statistic is NaN are left out.

    Args:
        statistic: takes one flat array per group.
        groups: lists of clusters, for instance with one array of scores per prompt.
        draws: number of bootstrap samples.
        seed: seed of the samples.

    Example:
        >>> clustered(lambda a: float(a.mean()), [np.array([1.0, 1.0]), np.array([0.0, 0.0])]).value
        0.5
    """
    rng = np.random.default_rng(seed)
    value = statistic(*(np.concatenate(group) for group in groups))
    redrawn = [
        statistic(*(np.concatenate([group[i] for i in rng.integers(len(group), size=len(group))]) for group in groups))
        for _ in range(draws)
    ]
    known = [figure for figure in redrawn if not np.isnan(figure)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def rate(groups: list[np.ndarray]) -> Estimate:
    """A share of hits with its 95% interval, for which whole clusters are drawn.

    If hits are rare, a bootstrap underestimates the interval. So it also covers the exact interval (Clopper–Pearson) of
    as many trials as there are clusters, with the same share of hits.

    Example:
        >>> rate([np.zeros(4)] * 28).high
        0.123...
    """
    return covering_exact(_clustered_mean(groups), len(groups))


def paired_difference(before: list[np.ndarray], after: list[np.ndarray]) -> Estimate:
    """How much a share of hits changes, after − before, with its 95% interval, for which whole clusters are drawn.

    Every trial is seen twice, so trials that do not change say nothing against a change of the others. If changes are
    rare, a bootstrap underestimates the interval. So it also covers the one that follows from the intervals of two
    shares, of the trials that gain a hit and of those that lose one (square-and-add: Newcombe, 1998).

    Args:
        before: one array of 0 and 1 per cluster.
        after: the same trials, in the same order.

    Example:
        >>> paired_difference([np.ones(1)] * 40, [np.zeros(1)] * 40).high < -0.8
        True
    """
    changes = [after_one - before_one for before_one, after_one in zip(before, after, strict=True)]
    drawn = _clustered_mean(changes)
    gained, lost = (rate([(sign * change > 0).astype(float) for change in changes]) for sign in (1, -1))
    low = drawn.value - math.hypot(gained.value - gained.low, lost.high - lost.value)
    high = drawn.value + math.hypot(gained.high - gained.value, lost.value - lost.low)
    return Estimate(drawn.value, max(-1.0, min(drawn.low, low)), min(1.0, max(drawn.high, high)))


def _clustered_mean(groups: list[np.ndarray], *, draws: int = 1000, seed: int = 0) -> Estimate:
    """What `clustered` gives for a mean; many times faster, because a sum per cluster is all that a mean needs."""
    rng = np.random.default_rng(seed)
    sums = np.array([float(group.sum()) for group in groups])
    counts = np.array([len(group) for group in groups])
    redrawn = [
        sums[drawn].sum() / counts[drawn].sum()
        for drawn in (rng.integers(len(groups), size=len(groups)) for _ in range(draws))
    ]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def covering_exact(found: Estimate, trials: int) -> Estimate:
    """An estimate of a share whose interval also covers the exact one (Clopper–Pearson) of so many trials.

    A bootstrap underestimates the interval where nearly all trials have one result, and is a point where all have.

    Args:
        found: the share in [0, 1], with its bootstrap interval.
        trials: number of independent trials, for instance of clusters.
    """
    hits = found.value * trials
    low = beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    return Estimate(found.value, min(found.low, float(low)), max(found.high, float(high)))
