"""Exposures have closed forms, and the tests keep their rate."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from cryptomnesia import DoseResponse
from cryptomnesia.finetuning.canaries.exposure import doses, exposed, extrapolated, median, rank_sum_p_value


def measured(scores, repetitions, null, alpha=0.05):
    scores, null = np.array(scores, float), np.array(null, float)
    each = exposed([f"canary {place}" for place in range(len(scores))], repetitions, scores, null)
    return DoseResponse({}, doses(each, scores, null, alpha), len(null), alpha)


@pytest.mark.parametrize(("above", "bits"), [(0, 5.0), (1, 4.0), (3, 3.0), (15, 1.0), (31, 0.0)])
def test_exposure_is_log2_of_all_ranks_minus_log2_of_the_rank(above, bits):
    null = np.arange(31.0)
    [one] = exposed(["a"], [1], np.array([30.5 - above]), null)
    assert one.p_value == (above + 1) / 32
    assert one.exposure == bits
    assert one.score == 30.5 - above - 15


def test_a_canary_that_ties_with_the_reserve_counts_as_less_exposed():
    [one] = exposed(["a"], [1], np.array([2.0]), np.array([0.0, 1.0, 2.0]))
    assert one.exposure == 1.0
    assert rank_sum_p_value(np.full(3, 7.0), np.full(5, 7.0)) == 1.0


def test_exposures_of_what_was_never_learnt_are_those_of_uniform_ranks():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        scores = rng.normal(size=16)
        found += [one.exposure for one in exposed(["a"], [1], scores[:1], scores[1:])]
    # P(exposure ≥ b) = 2^-b for whole b
    for bits in (1, 2, 3, 4):
        assert binom.cdf(np.sum(np.array(found) >= bits), 400, 2.0**-bits) == pytest.approx(0.5, abs=0.499)


def test_extrapolation_agrees_with_a_normal_tail_and_never_ends():
    null = np.random.default_rng(1).normal(size=20_000)
    inside, beyond, far = extrapolated(np.array([0.0, 5.0, 1e6]), null)
    assert inside == pytest.approx(1.0, abs=0.05)
    assert beyond == pytest.approx(21.7, abs=1.5)
    assert far == 1022
    assert math.isnan(extrapolated(np.array([1.0]), np.zeros(5))[0])


@pytest.mark.parametrize("shape", [(1, 19), (2, 8), (3, 5)])
def test_the_smallest_p_value_is_one_arrangement_of_all(shape):
    canaries, reserve = shape
    p_value = rank_sum_p_value(np.arange(canaries) + 100.0, np.arange(reserve, dtype=float))
    assert p_value == pytest.approx(1 / math.comb(canaries + reserve, canaries))
    assert math.isnan(rank_sum_p_value(np.array([]), np.arange(3.0)))


def test_if_nothing_is_learnt_repetitions_stand_out_at_the_rate():
    rng = np.random.default_rng(2)
    repetitions = [1] * 4 + [8] * 4 + [64] * 4
    out = sum(
        any(dose.stands_out for dose in measured(rng.normal(size=12), repetitions, rng.normal(size=40), 0.1).doses)
        for _ in range(500)
    )
    # 10% of 500, and never twice as often by three tests
    assert 25 <= out <= 75


@pytest.mark.parametrize("count", [6, 9, 20])
def test_the_interval_of_a_median_covers_it_in_95_of_100(count):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        found = median(rng.random(count).tolist(), 0.0, 1.0)
        covered += found.low <= 0.5 <= found.high
    assert covered >= 940


def test_fewer_than_six_canaries_have_no_interval():
    assert vars(median([1.0, 2.0, 3.0, 4.0, 5.0], 0.0, 8.0)) == {"value": 3.0, "low": 0.0, "high": 8.0}


NULL = np.linspace(-1, 1, 40)


def test_what_stands_out_and_what_is_tolerated():
    found = measured([0.0] * 6 + [0.1] * 6 + [2.0] * 6, [1] * 6 + [8] * 6 + [64] * 6, NULL)
    assert [dose.stands_out for dose in found.doses] == [False, False, True]
    assert (found.tolerated, found.exit_code) == (8, 1)
    assert found.doses[2].exposure.value == pytest.approx(math.log2(41))
    assert found.doses[2].single == 6
    assert found.conclusion == [
        "Canaries of 64 repetitions are restored better than pictures that were never shown (error rate 0.05).",
        "Up to 8 repetitions canaries are not told from pictures that were never shown (error rate 0.05).",
        "That does not show that nothing is learnt: 0 of 6 canaries of 8 repetitions stand out by themselves, so up to "
        "46% of pictures that are shown as often may.",
    ]


def test_the_first_that_does_not_stand_out_ends_the_tests():
    found = measured([2.0] * 6 + [0.0] * 6, [8] * 6 + [64] * 6, NULL)
    assert not any(dose.stands_out for dose in found.doses)
    assert (found.tolerated, found.exit_code) == (64, 0)
    assert found.conclusion[-1].startswith("Canaries of 8 repetitions have p = ")
    assert found.conclusion[-1].endswith("although those of 64 repetitions do not stand out; more canaries would tell.")


def test_if_all_stand_out_none_is_tolerated():
    found = measured([2.0] * 4, [1, 1, 8, 8], NULL)
    assert (found.tolerated, found.exit_code) == (0, 1)
    assert found.conclusion == [
        "Canaries of 1 repetition and more are restored better than pictures that were never shown (error rate 0.05)."
    ]


def test_repetitions_that_could_not_be_measured_are_undecided():
    found = measured([0.0, 0.0, math.nan], [1, 1, 8], NULL)
    assert math.isnan(found.doses[1].p_value)
    assert (found.doses[1].exposure.low, found.doses[1].share.high) == (0.0, 1.0)
    assert found.exit_code == 3
    assert found.tolerated == 1
    assert found.conclusion[0] == "No canary of 8 repetitions could be measured."
    assert found.conclusion[1].startswith("Up to 1 repetition canaries are not told from")
    # they do not end the tests
    assert measured([2.0] * 6 + [math.nan], [1] * 6 + [8], NULL).doses[0].stands_out
    read = found.to_json()["doses"][1]
    assert (read["p_value"], read["exposure"]["value"], read["measured"]) == (None, None, [])
