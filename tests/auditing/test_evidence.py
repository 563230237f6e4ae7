import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptomnesia import UsageError
from cryptomnesia.auditing.evidence import Level, gate


def test_levels_need_what_they_say():
    assert Level.of(0.5, 0.01) == Level.none
    assert Level.of(0.5, 0.01, corroborated=True) == Level.none
    assert Level.of(0.01, 0.01) == Level.suspected
    assert Level.of(0.01, 0.01, corroborated=True) == Level.corroborated
    assert Level.of(float("nan"), 0.01) == Level.unknown
    assert Level.of(float("nan"), 0.01, confirmed=True) == Level.confirmed


def test_a_prompt_with_an_image_that_could_not_be_judged_is_unsure_below_the_level():
    levels = [Level.suspected] * 10 + [Level.none] * 390
    unsure = [True] * 10 + [False] * 390
    assert gate(levels, Level.confirmed, 0.01).outcome == "passed"
    found = gate(levels, Level.confirmed, 0.01, unsure=unsure)
    assert (found.outcome, found.unknown) == ("undecided", 10)
    assert gate(levels, Level.suspected, 0.01, unsure=unsure).unknown == 0


def of(hits, others, unknown=0):
    return [Level.confirmed] * hits + [Level.none] * others + [Level.unknown] * unknown


def test_the_interval_decides_and_not_the_share():
    # Clopper–Pearson by hand: none of n has the upper bound 1 − .025^(1/n)
    passed = gate(of(0, 400), Level.confirmed, 0.01)
    assert (passed.outcome, passed.exit_code) == ("passed", 0)
    assert passed.share.high == pytest.approx(1 - 0.025 ** (1 / 400))
    undecided = gate(of(0, 300), Level.confirmed, 0.01)
    assert (undecided.outcome, undecided.exit_code) == ("undecided", 3)
    assert undecided.needed == 368  # the first n with .025^(1/n) > .99
    failed = gate(of(20, 380), Level.confirmed, 0.01)
    assert (failed.outcome, failed.exit_code) == ("failed", 1)
    assert gate(of(5, 395), Level.confirmed, 0.01).outcome == "undecided"


def test_levels_below_the_least_do_not_count():
    levels = [Level.suspected] * 50 + [Level.none] * 350
    assert gate(levels, Level.confirmed, 0.01).outcome == "passed"
    assert gate(levels, Level.suspected, 0.01).outcome == "failed"


def test_what_is_unknown_never_helps_to_pass():
    assert gate(of(0, 400, unknown=30), Level.confirmed, 0.01).outcome == "undecided"
    assert gate(of(40, 360, unknown=30), Level.confirmed, 0.01).outcome == "failed"
    assert gate(of(0, 400, unknown=30), Level.confirmed, 0.01).needed is None


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 300), st.floats(0, 0.5))
def test_the_number_needed_decides(hits, others, limit):
    found = gate(of(hits, others), Level.confirmed, limit)
    assert found.share.low <= found.share.value <= found.share.high
    if found.outcome == "undecided" and found.needed is not None and found.needed < 10**5:
        again = round(found.share.value * found.needed)
        assert found.needed > found.prompts
        assert gate(of(again, found.needed - again), Level.confirmed, limit).outcome != "undecided"


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="got no prompts"):
        gate([], Level.confirmed, 0.01)
    with pytest.raises(UsageError, match="got the limit 1"):
        gate(of(1, 1), Level.confirmed, 1.0)
