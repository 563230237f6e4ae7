"""Every family with every solver works, or is refused in words; the quick tests try each with its own solver."""

import pytest

from compatibility import CASES, outcomes, solvers_for


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_solver_works_with_a_family_or_is_refused(name):
    found = {solver: outcomes(name, solver) for solver in solvers_for(name)}
    wrong = {solver: verbs for solver, verbs in found.items() if any(v.startswith("wrong") for v in verbs.values())}
    assert not wrong
    # some solvers cannot be steered; all else has to work with one at least
    observing = ("watch", "localize", "detect", "audit")
    assert any(all(verbs[verb] == "works" for verb in observing) for verbs in found.values())
