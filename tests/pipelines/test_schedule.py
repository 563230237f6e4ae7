import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from cryptomnesia import UsageError
from cryptomnesia.pipelines.schedule import schedule_of


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


def test_a_scheduler_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="no alphas_cumprod"):
        schedule_of(object())
