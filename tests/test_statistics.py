from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binomtest

from cryptomnesia.statistics import auc, clustered, rate, tpr_at_fpr


def test_auc_counts_ordered_pairs():
    assert auc(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx((2 + 0 + 0.5) / 4)
    positive, negative = np.random.default_rng(0).integers(0, 9, (2, 50)).astype(float)
    pairs = positive[:, None] - negative[None, :]
    assert auc(positive, negative) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    with pytest.raises(ValueError, match="NaN among the scores"):
        auc(np.array([1.0, np.nan]), negative)


def test_tpr_at_fpr_uses_the_threshold_that_the_negatives_allow():
    negative = np.arange(100.0)
    assert tpr_at_fpr(np.array([98.5, 98.0, 200.0]), negative) == pytest.approx(2 / 3)
    assert np.isnan(tpr_at_fpr(np.array([98.5, 200.0]), negative, rate=0.001))


def test_intervals_redraw_whole_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=30)
    clusters = [centre + 0.01 * rng.normal(size=50) for centre in centres]
    estimate = clustered(lambda values: float(values.mean()), clusters)
    # the images of a prompt agree, so the error is that of 30 observations, not of 1,500
    width = 2 * 1.96 * centres.std(ddof=1) / 30**0.5
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.2)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("trials", "each"), [(200, 1), (28, 12)])
def test_more_hits_never_make_the_bounds_of_a_rate_lower(trials, each):
    clusters = [np.zeros(each) for _ in range(trials)]
    bounds = [rate(clusters)]
    for hit in range(3):
        clusters[hit] = np.eye(1, each)[0]
        bounds.append(rate(clusters))
    assert all(a.low <= b.low and a.high <= b.high for a, b in pairwise(bounds))
    if each == 1:
        exact = binomtest(1, trials).proportion_ci(method="exact")
        assert (bounds[1].low, bounds[1].high) == (min(bounds[1].low, exact.low), pytest.approx(exact.high))


def test_an_interval_never_shrinks_to_a_point_for_a_rate():
    none = rate([np.zeros(8)] * 28)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 28))
    every = rate([np.ones(8)] * 28)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(0.025 ** (1 / 28))
    some = rate([np.zeros(8)] * 20 + [np.ones(8)] * 20)
    assert some.value == 0.5
    assert 0.3 < some.low < 0.4
    assert 0.6 < some.high < 0.7
