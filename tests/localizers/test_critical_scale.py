"""The local critical scale on models of which it is known."""

import math
from dataclasses import replace

import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.localizers.base import Watched, map_where_finite
from cryptomnesia.localizers.critical_scale import LocalCriticalScale
from cryptomnesia.pipelines.schedule import level_at
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion_3
from cryptomnesia.testing.oracles import Gaussian, schedule
from cryptomnesia.tracing.trajectory import Step, Trajectory

SIDE, SIZE = 4, 16
TIMES = (981.0, 701.0, 401.0, 101.0, 1.0)


def run_of(oracle, x, times):
    """A run that sees `x` at the noise levels of `times`."""
    inputs = {"which": torch.zeros(len(x), dtype=torch.long)}
    steps = {}
    for number, t in enumerate(times):
        predicted = oracle(x, level_at(schedule(), t), inputs)
        steps[number] = Step(number, len(times), t, predicted, None, predicted, x, inputs, None, {})
    return Trajectory(times, {"z": torch.ones(len(x), len(times))}, steps, x, complete=True)


def test_every_place_of_a_gaussian_has_its_own_scale():
    """D_σ(x) = ρ·x with ρ = λ/(λ + σ²) at every place, so it is retained at σ if 1 − ρ^K ≤ r."""
    variances = torch.tensor([1e-3, 1.0, 50.0, 1e4], dtype=torch.float64).repeat_interleave(4)
    oracle = Gaussian(
        torch.zeros(1, SIZE, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64)[None], variances[None]
    )
    x = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = LocalCriticalScale(levels=5).map(Watched(run_of(oracle, x, TIMES), oracle)).values
    # a solver of second order evaluates the network twice at a noise level
    twice = tuple(t for t in TIMES for _ in range(2))
    again = LocalCriticalScale(levels=10).map(Watched(run_of(oracle, x, twice), oracle)).values
    torch.testing.assert_close(again, found)
    sigmas = sorted((level := level_at(schedule(), t)).sigma / level.alpha for t in TIMES)
    below = 2 * math.log(sigmas[0]) - math.log(sigmas[1])
    for place, variance in enumerate(variances.tolist()):
        retained = [sigma for sigma in sigmas if 1 - (variance / (variance + sigma**2)) ** 16 <= 0.1]
        expected = math.log(max(retained)) - below if retained else 0.0
        values = found.flatten(1)[:, place]
        torch.testing.assert_close(values, torch.full_like(values, expected))
    assert len(set(found[0].flatten().tolist())) >= 3


def test_output_that_is_not_finite_gives_no_map():
    oracle = Gaussian(
        torch.zeros(1, SIZE, dtype=torch.float64),
        torch.eye(SIZE, dtype=torch.float64)[None],
        torch.ones(1, SIZE, dtype=torch.float64),
    )
    x = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = run_of(oracle, x, TIMES)

    def broken(x, level, inputs):
        predicted = oracle(x, level, inputs)
        return replace(predicted, value=predicted.value * (math.nan if 300 < level.t < 800 else 1))

    method = LocalCriticalScale(levels=5)
    assert map_where_finite(method, Watched(run, oracle)).values.isfinite().all()
    assert map_where_finite(method, Watched(run, broken)).values.isnan().all()


def test_runs_that_see_nothing_but_noise_are_refused():
    with pytest.raises(UsageError, match="with 1 step local-critical-scale would look at pure noise; give more steps"):
        Setup.of(stable_diffusion_3(), {"num_inference_steps": 1}).check([LocalCriticalScale()])
    Setup.of(stable_diffusion_3(), {"num_inference_steps": 2}).check([LocalCriticalScale()])
