"""Up to which noise a picture stays where it is, of any picture and any levels."""

import math

import pytest
import torch

from cryptomnesia.detectors.critical_scale import CriticalScale
from cryptomnesia.pipelines.schedule import level_of_ratio
from cryptomnesia.testing.oracles import FiniteSet, schedule

GENERATOR = torch.Generator().manual_seed(0)
HELD = torch.randn(1, 4, 4, 4, generator=GENERATOR)
MANY = torch.randn(20, 4, 4, 4, generator=GENERATOR)
ORACLE = FiniteSet((MANY, HELD, torch.cat([HELD, MANY])))
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
LEVELS = [level_of_ratio(schedule(), ratio) for ratio in RATIOS]
STEP = math.log(LEVELS[0].sigma / LEVELS[0].alpha)


def scale(pictures, which, levels=LEVELS):
    inputs = {"which": torch.full((len(pictures),), which)}
    return CriticalScale().of(pictures, levels, ORACLE, inputs, torch.float32)


def test_a_picture_that_alone_is_known_stays_at_every_level():
    last = LEVELS[-1]
    assert scale(HELD, 1).item() == pytest.approx(math.log(last.sigma / last.alpha))


def test_a_picture_that_is_not_known_stays_nowhere():
    first, second = (math.log(level.sigma / level.alpha) for level in LEVELS[:2])
    assert scale(HELD, 0).item() == pytest.approx(2 * first - second)
    assert scale(HELD, 0, LEVELS[:1]).item() == pytest.approx(first - 1)


def test_among_others_it_stays_up_to_some_level():
    low, high = scale(HELD, 0).item(), scale(HELD, 1).item()
    assert low < scale(HELD, 2).item() < high
    found = scale(torch.cat([HELD, MANY[:2], MANY[:1] + 3]), 2)
    assert found[3].item() == low
    for row in range(4):
        assert found[row] == scale(torch.cat([HELD, MANY[:2], MANY[:1] + 3])[row : row + 1], 2)


def test_pure_noise_is_no_level_and_nan_stays_nan():
    noise = level_of_ratio(schedule(), 1e9)
    assert noise.alpha > 1e-3
    pictures = torch.cat([HELD, HELD * torch.nan])
    found = scale(pictures, 1)
    assert found[0].isfinite()
    assert found[1].isnan()


def local(pictures, which, levels=LEVELS):
    inputs = {"which": torch.full((len(pictures),), which)}
    return CriticalScale().local(pictures, levels, ORACLE, inputs, torch.float32)


def test_places_of_a_known_picture_stay_as_long_as_it_does_and_others_nowhere():
    last = LEVELS[-1]
    assert local(HELD, 1).shape == (1, 4, 4)
    torch.testing.assert_close(local(HELD, 1), torch.full((1, 4, 4), math.log(last.sigma / last.alpha)))
    first, second = (math.log(level.sigma / level.alpha) for level in LEVELS[:2])
    torch.testing.assert_close(local(HELD, 0), torch.full((1, 4, 4), 2 * first - second))


def test_places_that_are_known_stay_where_others_of_the_picture_leave():
    """Its left half is that of the only picture that is known."""
    half = HELD.clone()
    half[..., 2:] = MANY[:1, ..., 2:]
    mixed = local(torch.cat([HELD, half, MANY[:1], HELD * torch.nan]), 1)
    assert (mixed[1][:, :2] == mixed[0][:, :2]).all()
    assert (mixed[1][:, 2:] < mixed[0][:, 2:]).all()
    assert (mixed[2] < mixed[0]).all()
    assert mixed[3].isnan().all()
    # a picture has the same values alone
    torch.testing.assert_close(local(half, 1)[0], mixed[1])
