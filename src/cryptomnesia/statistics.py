"""Figures of merit, with intervals that know that images of one prompt are not independent."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its 95% interval."""

    value: float
    low: float
    high: float


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve of scores (n,) against scores (m,): P(positive > negative), ties half."""
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise ValueError("got NaN among the scores; leave out what could not be judged, and say how many")
    # a bootstrap asks for thousands of these: no curve is made
    below, up_to = (np.searchsorted(np.sort(negative), positive, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negative)))


def tpr_at_fpr(positive: np.ndarray, negative: np.ndarray, rate: float = 0.01) -> float:
    """Share of `positive` above the smallest threshold that at most a share `rate` of `negative` exceeds.

    NaN where `negative` holds fewer than 1/`rate` scores.
    """
    descending = np.sort(negative)[::-1]
    if rate * len(negative) < 1:
        return float("nan")  # no negative may lie above: that would be another figure
    threshold = descending[int(rate * len(negative))]
    return float((positive > threshold).mean())


def clustered(statistic: Callable[..., float], *groups: list[np.ndarray], draws: int = 1000, seed: int = 0) -> Estimate:
    """A statistic with its 95% percentile bootstrap interval, whole clusters being redrawn.

    The interval shrinks to a point where every redrawn figure is the same, an AUC of 1 for instance.

    Args:
        statistic: takes one flat array per group.
        groups: each a list of clusters, for instance one array of scores per prompt.
        draws: bootstrap samples.
        seed: of the redrawing.

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
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def rate(groups: list[np.ndarray]) -> Estimate:
    """A share of hits with its 95% interval, whole clusters being redrawn.

    Where hits are rare, redrawing shows too little; so the interval also covers the exact one (Clopper–Pearson) for as
    many trials as there are clusters, of which the same share are hits.

    Example:
        >>> rate([np.zeros(4)] * 28).high
        0.123...
    """
    found = clustered(lambda hits: float(hits.mean()), groups)
    trials = len(groups)
    hits = found.value * trials
    low = beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    return Estimate(found.value, min(found.low, float(low)), max(found.high, float(high)))
