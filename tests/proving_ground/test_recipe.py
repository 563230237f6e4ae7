import pytest

from cryptomnesia import UsageError
from cryptomnesia.proving_ground.recipe import Phase, Recipe, learning_rate

THREE = (Phase(4, 8, 1e-3), Phase(2, 3, 1e-4), Phase(3, 5, 1e-5, exchanged=0.5))


def test_a_step_belongs_to_a_phase_and_samples_follow_each_other():
    recipe = Recipe(THREE, kept=(2,))
    assert recipe.steps == 9
    found = [recipe.at(step) for step in range(recipe.steps)]
    assert [phase for phase, _, _ in found] == [THREE[0]] * 4 + [THREE[1]] * 2 + [THREE[2]] * 3
    assert [number for _, number, _ in found] == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    used = [range(first, first + phase.batch) for phase, _, first in found]
    assert [sample for samples in used for sample in samples] == list(range(4 * 8 + 2 * 3 + 3 * 5))
    with pytest.raises(ValueError, match="behind the last phase"):
        recipe.at(9)


def test_a_checkpoint_behind_the_last_step_is_refused():
    with pytest.raises(UsageError, match=r"got kept=\(2, 10\) of 9 steps; give steps between 0 and 9"):
        Recipe(THREE, kept=(2, 10))
    with pytest.raises(UsageError, match="give steps between 0 and 9"):
        Recipe(THREE, kept=())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "got a phase of 0 steps of 8 samples at rate 0.001"),
        ({"batch": -1}, "give 1 or more"),
        ({"rate": 0.0}, "and a positive rate"),
        ({"middle": 75}, "got middle=75 of a phase, which is a share; give 0 to 1"),
        ({"exchanged": -0.1}, "got exchanged=-0.1"),
        ({"planted_dropout": 3.0}, "got planted_dropout=3"),
        ({"planted_as_others_below": 550}, "got planted_as_others_below=550"),
        ({"rate": float("nan")}, "and a positive rate"),
    ],
)
def test_a_phase_with_impossible_numbers_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Phase(**{"steps": 4, "batch": 8, "rate": 1e-3, **wrong})


@pytest.mark.parametrize("wrong", [{"warmup": 0}, {"cooldown": 0.0}, {"cooldown": 1.5}])
def test_a_rate_that_cannot_rise_or_fall_is_refused(wrong):
    with pytest.raises(UsageError, match="give 1 or more, and above 0 to 1"):
        Recipe(THREE, kept=(2,), **wrong)


def test_the_rate_warms_up_and_cools_down():
    rates = [learning_rate(step, 100, 10, 0.2) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[10] == rates[80] == 1.0
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
