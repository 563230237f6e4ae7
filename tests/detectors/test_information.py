"""Information, against what is known of models with a closed form."""

import math
from types import SimpleNamespace

import pytest
import torch

from cryptomnesia import UsageError, watch
from cryptomnesia.detectors.information import Information
from cryptomnesia.pipelines.denoiser import Prediction, norms
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import SAMPLING, call_oracle, oracle_pipeline, stable_diffusion
from cryptomnesia.testing.oracles import Gaussian
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.information import gained, log_snr, noise_scale

SIZE = 16


def at(log_snr, epsilons, kind="epsilon"):
    """An evaluation at a noise level, whose branches predict noises that differ by `epsilons` (B,) in norm."""
    alpha = math.sqrt(1 / (1 + math.exp(-log_snr))) if log_snr > -math.inf else 0.0
    sigma = math.sqrt(1 - alpha**2)
    x = torch.zeros(len(epsilons), 1, 2, 2, dtype=torch.float64)
    change = torch.zeros_like(x)
    change[:, 0, 0, 0] = torch.as_tensor(epsilons, dtype=torch.float64)
    scale = {"epsilon": 1.0, "v_prediction": alpha, "sample": -alpha / sigma if alpha else 1.0}[kind]
    cond, uncond = (
        Prediction(x, value, alpha, sigma, kind) for value in (change / (scale or 1.0), torch.zeros_like(x))
    )
    return SimpleNamespace(cond=cond, uncond=uncond)


def nats(steps):
    differences = [
        (log_snr(step.cond), (noise_scale(step.cond) * norms(step.cond.value - step.uncond.value)) ** 2)
        for step in steps
    ]
    pairs = zip([None, *differences[:-1]], differences, strict=True)
    return sum(gained(before, here) for before, here in pairs).tolist()


def test_a_constant_difference_of_the_predicted_noise_is_integrated_over_log_snr():
    """Before the first evaluation the difference of the estimates is constant: half of its square."""
    steps = [at(level, [1.0, 2.0]) for level in (-4, -2.5, -1, -0.5)]
    assert nats(steps) == pytest.approx([0.5 * (1 + 3.5), 4 * 0.5 * (1 + 3.5)], rel=1e-5)
    # beyond the end nothing counts, and of the interval that holds it the part before it
    assert nats([*steps, at(3, [1.0, 2.0]), at(5, [9.0, 9.0])]) == pytest.approx([2.5, 10.0], rel=1e-5)
    assert nats([at(2, [1.0])]) == pytest.approx([0.5 * math.exp(-2)], rel=1e-5)


def test_a_difference_that_changes_is_followed_by_trapezoids():
    steps = [at(-2, [0.0]), at(2, [2.0])]
    # the square of the difference is 2 at the end, half of the way
    assert nats(steps) == pytest.approx([0.5 * 2 * (0 + 2) / 2], rel=1e-5)


def test_what_the_network_predicts_does_not_matter():
    levels = ((-3, [0.4]), (-1, [0.7]), (0.5, [0.2]))
    expected = nats([at(*level) for level in levels])
    for kind in ("v_prediction", "sample"):
        assert nats([at(*level, kind) for level in levels]) == pytest.approx(expected, rel=1e-5)


def test_pure_noise_at_the_beginning_and_a_repeated_noise_level_add_nothing():
    steps = [at(-2, [1.0]), at(-1, [1.0])]
    assert nats([at(-math.inf, [0.0]), *steps]) == pytest.approx(nats(steps))
    assert nats([steps[0], steps[0], steps[1]]) == pytest.approx(nats(steps))


@pytest.mark.parametrize("count", [25, 100])
def test_gaussian_shift_has_the_information_that_a_formula_gives(count):
    """N(μ, 1) against N(0, 1): x̂_0 differs by μ/(1 + snr), so up to snr = 1 there are ½‖μ‖²·(1 − 1/2) nats."""
    mean = 0.8 * torch.ones(SIZE, dtype=torch.float64)
    ones = torch.ones(2, SIZE, dtype=torch.float64)
    basis = torch.eye(SIZE, dtype=torch.float64).repeat(2, 1, 1)
    pipe = oracle_pipeline(Gaussian(mean=torch.stack([torch.zeros_like(mean), mean]), basis=basis, variances=ones))
    with watch(pipe) as seen:
        call_oracle(pipe, which=1, seeds=range(3), steps=count)
    found = Information().score(seen.trajectory, seen.trajectory)
    torch.testing.assert_close(found, torch.full((3,), 0.25 * mean.square().sum().item()), rtol=0.02, atol=0)


def test_it_is_known_after_every_evaluation_and_needs_guidance():
    setup = Setup(stable_diffusion(), SAMPLING)
    batch = next(generate(setup, ["a red ring", "a blue disc"], [1, 2], batch_size=2))
    running = Information().running(batch.trajectory, batch.trajectory)
    assert (running.diff(dim=1) >= 0).all()
    assert (running[:, -1] > 0).all()
    with pytest.raises(UsageError, match="guidance"):
        Setup.of(stable_diffusion(), {"num_inference_steps": 3, "guidance_scale": 1.0}).check([Information()])
