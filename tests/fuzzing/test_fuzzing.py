"""Few inputs of every area in `make test`, and all of them in `make test-slow`."""

import pytest

from fuzzing.areas import AREAS
from fuzzing.harness import fuzz_area
from fuzzing.samples import Samples

FEW, MANY = 30, 2000
"""Inputs of an area of usual weight."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Valid files of every kind."""
    return Samples.make(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("area", AREAS)
def test_inputs_are_used_or_refused_in_one_line(samples, area):
    counts = check(area, FEW, 0, samples)
    assert counts.inputs >= min(10, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_many_inputs_are_used_or_refused_in_one_line(samples, area):
    counts = check(area, MANY, 1, samples)
    # the inputs reach what lies behind the first check
    assert counts.used > counts.inputs / 200
    assert len(counts.refused) >= 3


def check(area, examples, seed, samples):
    """Fuzz an area, and show what went wrong."""
    counts = fuzz_area(area, max(10, round(examples * AREAS[area].weight)), seed, samples)
    assert counts.failures == []
    assert (counts.tracebacks, counts.wrong) == (0, 0)
    assert counts.inputs == counts.used + sum(counts.refused.values()) >= 10
    return counts
