from cryptomnesia.localizers import GuidanceMap, ScoreDifference
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
