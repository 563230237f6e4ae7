import math

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from cryptomnesia import FlagRate, UsageError, Verdict
from cryptomnesia.calibration.flag_rate import chance_of_few, chance_of_many
from cryptomnesia.statistics import conformal_p_values, flagged_ranks


def verdict(p_value, fpr=0.01):
    return Verdict(0, None, "drift", fpr, 0.0, p_value, p_value <= fpr, None, "")


FLAGGED, CLEAN, UNKNOWN = verdict(0.001), verdict(0.5), verdict(math.nan)


def told(rate, verdicts):
    return [line for line in map(rate.seen, verdicts) if line]


@pytest.mark.parametrize(("null", "fpr", "window"), [(99, 0.01, 50), (300, 0.01, 1000), (200, 0.05, 400)])
def test_a_single_window_has_the_beta_binomial_tails(null, fpr, window):
    ranks = flagged_ranks(null, fpr)
    exact = betabinom(window, ranks, null + 1 - ranks)
    for count in (0, 1, 5, 20, 50):
        many = chance_of_many(count, ranks, null, window, images=window)
        few = chance_of_few(count, ranks, null, window, images=window)
        # means over steps of the rate, and rounded up
        assert 0 <= many - exact.sf(count - 1) < 2e-4
        assert 0 <= few - exact.cdf(count) < 2e-4


def test_flags_of_conformal_p_values_are_beta_binomial():
    """The premise, with scores: the null decides how often new ordinary scores are flagged."""
    rng = torch.Generator().manual_seed(0)
    null, fpr, window = 99, 0.05, 100
    counts = [
        int((conformal_p_values(torch.randn(window, generator=rng), torch.randn(null, generator=rng)) <= fpr).sum())
        for _ in range(4000)
    ]
    ranks = flagged_ranks(null, fpr)
    exact = betabinom(window, ranks, null + 1 - ranks)
    for count in (0, 2, 5, 10, 15):
        assert np.mean(np.array(counts) <= count) == pytest.approx(exact.cdf(count), abs=0.03)


@pytest.mark.parametrize(("null", "fpr", "window"), [(99, 0.01, 100), (300, 0.05, 500), (999, 0.01, 2000)])
def test_services_are_warned_falsely_no_more_often_than_promised(null, fpr, window):
    """Whole lives of services with ordinary traffic; every look at every window counts."""
    level, images, services = 0.2, 20_000, 1000
    rate = FlagRate(null, fpr, window=window, level=level, images=images)
    rng = np.random.default_rng(0)
    ranks = flagged_ranks(null, fpr)
    warned = np.zeros(2)
    for _ in range(services):
        flags = np.concatenate([[0], np.cumsum(rng.random(images) < rng.beta(ranks, null + 1 - ranks))])
        counts = flags[window:] - flags[:-window]
        warned += counts.max() > rate.highest, counts.min() < rate.lowest
    # at most half of the level on each side, up to 3 standard errors
    assert (warned / services <= level / 2 + 3 * math.sqrt(level / 2 / services)).all()
    # and the bound is not idle
    assert warned[0] / services > level / 20


def test_too_many_flags_are_told_and_told_again_only_after_a_window():
    rate = FlagRate(300, window=100)
    assert not told(rate, [FLAGGED] * rate.highest)
    assert rate.state == "as promised"
    (line,) = told(rate, [FLAGGED])
    assert line.startswith(f"{rate.highest + 1} of the newest {rate.highest + 1} images are flagged, and at a false-")
    assert f"at most {rate.highest} of 100 would be" in line
    assert rate.state == "many"
    assert not told(rate, [FLAGGED] * 99)
    assert len(told(rate, [FLAGGED])) == 1
    # the window moves on
    assert not told(rate, [CLEAN] * 100)
    assert (rate.state, rate.flagged, rate.seen_images) == ("as promised", 0, 100)


def test_too_few_flags_are_told_of_a_long_window_only():
    assert FlagRate(300, window=1000).lowest == 0
    rate = FlagRate(300, 0.05, window=3000)
    assert rate.lowest > 10
    assert not told(rate, [CLEAN] * 2999)
    (line,) = told(rate, [CLEAN])
    assert line.startswith("0 of the newest 3000 images are flagged")
    assert f"at least {rate.lowest} of 3000 would be" in line
    assert rate.state == "few"


def test_what_could_not_be_judged_does_not_count():
    rate = FlagRate(300, window=50)
    assert not told(rate, [UNKNOWN] * 60)
    assert (rate.seen_images, rate.flagged) == (0, 0)


def test_more_looks_and_a_smaller_null_widen_the_bounds():
    assert FlagRate(300, images=10_000).highest < FlagRate(300, images=10_000_000).highest
    assert FlagRate(1000).highest < FlagRate(300).highest < FlagRate(100).highest
    # a window that can never be remarkable
    assert FlagRate(100, window=2).highest == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"got a window of 0 of 1000000 images; give 1 ≤ window ≤ images"),
        ({"window": 10, "images": 9}, r"got a window of 10 of 9 images"),
        ({"level": 1.0}, "got the level 1; give one between 0 and 1"),
        ({"level": math.nan}, "got the level nan"),
        (
            {"fpr": 0.001},
            r"rate of 0\.001 needs at least 999 null references, the calibration has 300",
        ),
        ({"window": 1.5}, "window"),
    ],
)
def test_what_is_not_possible_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        FlagRate(300, **arguments)
