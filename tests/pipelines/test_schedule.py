import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from cryptomnesia import UsageError
from cryptomnesia.pipelines.schedule import (
    Continuous,
    RectifiedFlow,
    VariancePreserving,
    level_at,
    level_of_ratio,
    schedule_of,
)
from cryptomnesia.pipelines.solvers import level_of, levels_of


def test_trained_timesteps_are_exact():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear")
    alpha, sigma = schedule_of(scheduler)(torch.tensor([0, 500, 999]))
    bars = scheduler.alphas_cumprod[[0, 500, 999]].double()
    torch.testing.assert_close(alpha**2, bars)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3, dtype=torch.float64))


def test_fractional_timesteps_agree_with_karras_sigmas():
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    alpha, sigma = schedule_of(scheduler)(scheduler.timesteps)
    torch.testing.assert_close((sigma / alpha).float(), scheduler.sigmas[:-1].float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("t", [0, 0.25, 499.9, 500, 998.5, 999, 1200.0, -3.0])
def test_one_level_is_that_of_the_whole_schedule(t):
    bars = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    schedule = VariancePreserving(bars)
    level = level_at(schedule, t)
    assert (level.t, level.alpha, level.sigma) == pytest.approx((t, *(value.item() for value in schedule(t))), rel=1e-6)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler], ids=lambda kind: kind.__name__)
def test_levels_that_the_timesteps_decide_are_known_before_the_steps(kind):
    scheduler = kind(beta_schedule="scaled_linear")
    scheduler.set_timesteps(5)
    timesteps = scheduler.timesteps.tolist()
    levels = levels_of(scheduler, timesteps)
    assert levels == ({t: level_of(scheduler, t) for t in timesteps} if kind is DDIMScheduler else {})


def test_a_scheduler_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="no alphas_cumprod"):
        schedule_of(object())


@pytest.mark.parametrize("ratio", [0.05, 0.5, 3.0, 12.0])
@pytest.mark.parametrize(
    ("schedule", "near"),
    [
        (VariancePreserving(DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod), 0.05),
        (RectifiedFlow(), 1e-6),
        (Continuous(), 1e-6),
    ],
    ids=["variance-preserving", "flow", "continuous"],
)
def test_a_level_is_found_by_its_noise(schedule, near, ratio):
    level = level_of_ratio(schedule, ratio)
    assert level.sigma / level.alpha == pytest.approx(ratio, rel=near)
    assert level == level_at(schedule, level.t)


def test_a_ratio_beyond_the_schedule_is_its_last_level():
    schedule = VariancePreserving(DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod)
    assert level_of_ratio(schedule, 1e6).t == 999
    assert level_of_ratio(schedule, 1e-6).t == 0
