import pytest
import torch

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers import GuidanceMap, ScoreDifference, localizer
from family_cases import CASES
from mapped_runs import watched


def test_a_score_difference_of_the_run_costs_no_evaluation():
    case = CASES["sd-epsilon"]
    seen = watched(case.setup())
    evaluated = []
    seen.denoiser.module.register_forward_hook(lambda *_: evaluated.append(1))
    for run in (seen, seen.rows([1])):
        ScoreDifference().map(run)
        GuidanceMap().map(run)
    assert evaluated == []


def test_the_filter_is_the_mean_over_the_part_of_the_square_inside_the_map():
    seen = watched(CASES["sd-epsilon"].setup())
    plain = ScoreDifference().map(seen).values
    side = plain.shape[1]
    found = ScoreDifference(window=3 / side).map(seen).values
    for row, column in [(0, 0), (0, 2), (1, 1), (side - 1, 1)]:
        square = plain[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        torch.testing.assert_close(found[:, row, column], square.mean(dim=(1, 2)))
    assert torch.equal(ScoreDifference(window=1 / side).map(seen).values, plain)
    assert localizer("score-difference-filtered") == ScoreDifference(window=13 / 64)
    assert ScoreDifference(window=0.2, baseline="checkpoint").name == "score-difference-filtered-checkpoint"
    with pytest.raises(UsageError, match="got the window 13; give a share of the map's side"):
        ScoreDifference(window=13)
