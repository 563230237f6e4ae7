import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from cryptomnesia import UsageError
from cryptomnesia.statistics import (
    auc,
    clustered,
    conformal_p_values,
    conformal_threshold,
    discovery_rate,
    needed_null,
    paired_difference,
    rate,
    rounded_up,
    tpr_at_fpr,
)


def test_conformal_p_values_count_ties_as_unusual():
    found = conformal_p_values(torch.tensor([0.0, 2.0, 5.0, torch.nan]), torch.tensor([1.0, 2.0, 2.0, 3.0]))
    torch.testing.assert_close(
        found, torch.tensor([1.0, 0.8, 0.2, torch.nan], dtype=torch.float64), equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize("fpr", [0.01, 0.05, 1 / 3, 0.5, 0.99])
@pytest.mark.parametrize("ties", [True, False])
def test_the_threshold_flags_exactly_the_scores_whose_p_value_is_at_most_the_rate(fpr, ties):
    null = torch.randn(99, generator=torch.Generator().manual_seed(0))
    null = null.round() if ties else null
    threshold = conformal_threshold(null, fpr)
    scores = torch.cat([null, torch.nextafter(null, torch.tensor(9.0)), torch.tensor([-9.0, 9.0])])
    assert torch.equal(scores >= threshold, conformal_p_values(scores, null) <= fpr)


def test_a_rate_that_the_null_does_not_support_is_refused():
    with pytest.raises(
        UsageError, match=r"rate of 0\.01 needs at least 99 .* has 98; ask for 0\.011 .* on 148 prompts"
    ):
        conformal_threshold(torch.zeros(98), 0.01)
    for fpr in (0.0, 1.0, -0.1, 2.0):
        with pytest.raises(UsageError, match="give one between 0 and 1"):
            conformal_threshold(torch.zeros(98), fpr)
    # 1/20 written as .05 needs 19, not 20
    assert [needed_null(fpr) for fpr in (0.01, 0.05, 0.5)] == [99, 19, 1]
    assert conformal_threshold(torch.zeros(19), 0.05) > 0
    assert [rounded_up(share) for share in (0.01, 1 / 99, 0.0101)] == ["0.01", "0.011", "0.011"]


def test_the_discovery_rate_is_that_of_benjamini_and_hochberg():
    """The example of their paper: of 15 p-values, four are found at a false-discovery rate of 5%."""
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    p_values += [0.7590, 1.0]
    assert discovery_rate(p_values, 0.05) == pytest.approx(4 * 0.05 / 15)
    assert sum(p <= discovery_rate(p_values, 0.05) for p in p_values) == 4
    # what could not be judged is not among them, and nothing is found above the largest rate
    assert discovery_rate([*p_values, math.nan], 0.05) == discovery_rate(p_values, 0.05)
    assert discovery_rate(p_values, 0.05, fpr=0.002) == 0.002
    assert discovery_rate([0.5, 0.9], 0.1) == 0.05
    assert discovery_rate([math.nan], 0.1, fpr=0.01) == 0.01
    # p-values are fractions, so ties at the threshold are usual, and rounding must not decide
    for null, count, fdr in ((99, 6, 0.3), (67, 3, 0.15), (999, 30, 0.1)):
        for k in range(1, count + 1):
            step = math.floor(fdr * k / count * (null + 1) + 1e-9) / (null + 1)
            tied = [*[step] * k, *[1.0] * (count - k)]
            assert sum(p <= discovery_rate(tied, fdr) for p in tied) in (0, k)
            if step > 0:
                assert step <= discovery_rate(tied, fdr)
    for fdr in (0.0, 1.0, math.nan):
        with pytest.raises(UsageError, match="give one between 0 and 1"):
            discovery_rate(p_values, fdr)


@pytest.mark.parametrize("memorized", [0, 5, 100])
def test_few_of_what_is_found_is_false(memorized):
    """Conformal p-values against one null, which depend on each other through it."""
    rng = np.random.default_rng(memorized)
    shares = []
    for _ in range(400):
        null = torch.from_numpy(rng.standard_normal(999))
        scores = torch.from_numpy(rng.standard_normal(300))
        scores[:memorized] += 4
        p_values = conformal_p_values(scores, null)
        found = p_values <= discovery_rate(p_values.tolist(), 0.2)
        shares.append(found[memorized:].sum() / max(1, found.sum()))
    # the mean of 400 shares has a standard error of .02 at most
    assert np.mean(shares) < 0.2 * (1 - memorized / 300) + 0.05
    if memorized == 100:
        assert found[:memorized].float().mean() > 0.9


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
    assert np.isnan(tpr_at_fpr(np.array([98.5, 200.0]), negative, fpr=0.001))


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


def test_a_rate_is_the_clustered_mean_with_its_exact_interval():
    draw = np.random.default_rng(1)
    groups = [(draw.random(size) < 0.3).astype(float) for size in draw.integers(1, 5, size=30)]
    found, drawn = rate(groups), clustered(lambda hits: float(hits.mean()), groups)
    assert found.value == pytest.approx(drawn.value)
    assert found.low <= drawn.low + 1e-12
    assert found.high >= drawn.high - 1e-12


def test_a_difference_of_the_same_trials_covers_the_truth():
    """One in ten trials loses its hit, one in a hundred gains one; trials of one cluster change together."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(100):
        changes = draw.choice([-1.0, 0.0, 1.0], p=[0.1, 0.89, 0.01], size=60)
        before = [np.full(2, float(change < 0)) for change in changes]
        after = [np.full(2, float(change > 0)) for change in changes]
        found = paired_difference(before, after)
        assert found.value == pytest.approx(changes.mean())
        covered += found.low <= -0.09 <= found.high
    assert covered >= 95


def test_a_difference_without_a_change_is_no_point():
    ones = [np.ones(1)] * 100
    found = paired_difference(ones, ones)
    assert (found.value, -found.low) == (0, found.high)
    assert 0.03 < found.high < 0.06
    gone = paired_difference(ones, [np.zeros(1)] * 100)
    assert (gone.value, gone.low) == (-1, -1)
    assert -0.98 < gone.high < -0.9
