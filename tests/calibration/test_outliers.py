from dataclasses import dataclass
from math import isnan

import pytest
import torch

from cryptomnesia import Calibration, Detector, Stability, UsageError
from cryptomnesia.calibration.outliers import changes, served
from cryptomnesia.calibration.stored import split
from runs import calibration_of_runs, trajectory

COUNT = 150


@dataclass(frozen=True)
class Given(Detector):
    """A norm in units of the references' spread."""

    name: str

    @property
    def reads(self):
        return frozenset({self.name})

    def running(self, runs, references):
        usual = references.norms[self.name]
        return (runs.norms[self.name] - usual.mean(dim=0)) / usual.std(dim=0)


JUDGES = [Given("delta"), Given("z"), Given("x0"), Given("drift")]


def made(memorized=(), seed=0, height=8.0, heavy=()):
    """A calibration of normal norms, those of the memorized runs `height` standard deviations higher."""
    generator = torch.Generator().manual_seed(seed)
    norms = {judge.name: torch.randn(COUNT, 2, generator=generator) for judge in JUDGES}
    for name, values in norms.items():
        values[list(memorized)] += height
        if name in heavy:
            values *= values.abs()
    return calibration_of_runs(trajectory(norms["z"], **norms))


def test_memorized_references_are_named():
    memorized = [3, 77, 140]
    found = made(memorized).suspicious(JUDGES)
    assert sorted(row.number for row in found) == memorized
    assert [row.p_value for row in found] == sorted(row.p_value for row in found)
    for row in found:
        assert row.p_value < 1e-3
        assert row.scores.keys() == row.usual.keys() == {"delta", "z", "x0", "drift"}
        assert all(row.scores[name] > row.usual[name] + 4 for name in row.scores)


def test_many_memorized_references_do_not_hide_each_other():
    memorized = list(range(10))
    assert {row.number for row in made(memorized).suspicious(JUDGES)} >= set(memorized)


def test_clean_references_are_rarely_reported():
    assert sum(bool(made(seed=seed).suspicious(JUDGES)) for seed in range(40)) <= 4


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_detectors_need_more(count):
    assert sum(bool(made(seed=seed).suspicious(JUDGES[:count])) for seed in range(40)) <= 4
    assert {row.number for row in made([3, 77], height=30.0).suspicious(JUDGES[:count])} == {3, 77}


def test_a_detector_with_heavy_tails_does_not_decide_alone():
    heavy = [made(seed=seed, heavy=["drift"]) for seed in range(40)]
    assert sum(bool(calibration.suspicious(JUDGES)) for calibration in heavy) <= 4


def test_scores_that_are_all_alike_name_nobody():
    assert calibration_of_runs(trajectory(torch.ones(COUNT, 2))).suspicious([Stability()]) == []


def test_the_registered_detectors_judge_by_default(calibration):
    usual = {"drift", "early-detail", "stability", "guidance-first", "guidance-mean", "guidance-last"}
    assert {judge.name for judge in served(calibration)} == usual
    unknown = torch.full((COUNT, 3), torch.nan)
    unguided = calibration_of_runs(trajectory(torch.rand(COUNT, 3), guidance=unknown, information=unknown))
    assert {judge.name for judge in served(unguided)} == {"drift", "early-detail", "stability"}
    with pytest.raises(UsageError, match="has not recorded tarot"):
        calibration.suspicious([Given("tarot")])


def test_references_that_are_left_out_change_nothing_about_the_others(tmp_path):
    whole = made([3, 77, 140])
    without = whole.without([140, 3]).without([77])
    assert without.left_out == (3, 77, 140)
    assert (len(without), len(without.references) + len(without.others)) == (147, 147)
    kept = [number for number in split(COUNT)[1] if number not in without.left_out]
    assert torch.equal(without.others.norms["z"], whole.runs.norms["z"][kept])
    without.save(tmp_path / "made.safetensors")
    again = Calibration.load(tmp_path / "made.safetensors")
    assert again.left_out == without.left_out
    assert torch.equal(again.others.norms["z"], without.others.norms["z"])
    assert again.suspicious(JUDGES) == []
    # numbers stay those of all prompts
    assert {row.number for row in whole.without([0, 3]).suspicious(JUDGES)} == {77, 140}
    for numbers, message in [
        ([150], "got the numbers 150, which no reference prompt has"),
        ([-1], "got the numbers -1"),
        ([1.5], r"got number=1\.5; give a whole number"),
        (range(76), "leaving out 76 of 150 reference prompts keeps fewer than half"),
    ]:
        with pytest.raises(UsageError, match=message):
            whole.without(numbers)
    with pytest.raises(UsageError, match="got the numbers 77, which no reference prompt has"):
        without.without([77])


def test_what_leaving_out_changes_is_told():
    memorized = split(COUNT)[1][:3]
    whole = made(memorized)
    without = whole.without(memorized)
    one, five = changes(whole, without, Given("z"))
    assert (one.fpr, five.fpr) == (0.01, 0.05)
    assert five.before == whole.threshold(Given("z"), 0.05)
    assert five.after == without.threshold(Given("z"), 0.05) < five.before
    # 100 scores of the null support a rate of 1%, and 97 do not
    assert one.before == whole.threshold(Given("z"), 0.01) > 5
    assert isnan(one.after)
