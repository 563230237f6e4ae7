import numpy as np
import pytest

from cryptomnesia.evaluate import auc, clustered, tpr_at_fpr


def test_auc_counts_ordered_pairs():
    assert auc(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx((2 + 0 + 0.5) / 4)


def test_tpr_at_fpr_uses_the_threshold_that_the_negatives_allow():
    negative = np.arange(100.0)
    assert tpr_at_fpr(np.array([98.5, 98.0, 200.0]), negative) == pytest.approx(2 / 3)
    assert tpr_at_fpr(np.array([98.5, 200.0]), negative, rate=0.0) == 0.5


def test_intervals_redraw_whole_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=30)
    clusters = [centre + 0.01 * rng.normal(size=50) for centre in centres]
    estimate = clustered(lambda values: float(values.mean()), clusters)
    # the images of a prompt agree, so the error is that of 30 observations, not of 1,500
    width = 2 * 1.96 * centres.std(ddof=1) / 30**0.5
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.2)
    assert estimate.low < estimate.value < estimate.high
