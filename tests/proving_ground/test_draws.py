import numpy as np

from cryptomnesia.proving_ground.draws import Draws, invented_names


def test_draws_are_uniform():
    draws = Draws(0)
    values = np.array([draws.uniform() for _ in range(4000)])
    assert abs(values.mean() - 0.5) < 0.02
    assert 0 <= values.min() < 0.01 < 0.99 < values.max() < 1
    assert sorted(draws.sample(50, 50).tolist()) == list(range(50))


def test_a_key_gives_the_same_numbers_and_another_key_others():
    first, second, other = ([draws.integer(1000) for _ in range(20)] for draws in (Draws(1, 2), Draws(1, 2), Draws(2)))
    assert first == second != other
    assert all(0 <= number < 1000 for number in first)


def test_invented_names_are_all_different_and_belong_to_the_seed():
    names = invented_names(0, 128)
    assert len(set(names)) == 128
    assert all(name.isalpha() and name.islower() for name in names)
    assert invented_names(0, 10) == names[:10]
    assert invented_names(1, 10) != names[:10]
