"""The local critical scale on models of which it is known."""

import math

import torch

from cryptomnesia.localizers.base import Watched
from cryptomnesia.localizers.critical_scale import LocalCriticalScale
from cryptomnesia.pipelines.schedule import level_at
from cryptomnesia.testing.oracles import Gaussian, schedule
from cryptomnesia.tracing.trajectory import Step, Trajectory

SIDE, SIZE = 4, 16
TIMES = (981.0, 701.0, 401.0, 101.0, 1.0)


def test_every_place_of_a_gaussian_has_its_own_scale():
    """D_σ(x) = ρ·x with ρ = λ/(λ + σ²) at every place, so it is retained at σ if 1 − ρ^K ≤ r."""
    variances = torch.tensor([1e-3, 1.0, 50.0, 1e4], dtype=torch.float64).repeat_interleave(4)
    oracle = Gaussian(
        torch.zeros(1, SIZE, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64)[None], variances[None]
    )
    x = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = {"which": torch.zeros(2, dtype=torch.long)}
    steps = {}
    for number, t in enumerate(TIMES):
        predicted = oracle(x, level_at(schedule(), t), inputs)
        steps[number] = Step(number, len(TIMES), t, predicted, None, predicted, x, inputs, None, {})
    run = Trajectory(TIMES, {"z": torch.ones(2, len(TIMES))}, steps, x, complete=True)
    found = LocalCriticalScale(levels=5).map(Watched(run, oracle)).values
    sigmas = sorted((level := level_at(schedule(), t)).sigma / level.alpha for t in TIMES)
    below = 2 * math.log(sigmas[0]) - math.log(sigmas[1])
    for place, variance in enumerate(variances.tolist()):
        retained = [sigma for sigma in sigmas if 1 - (variance / (variance + sigma**2)) ** 16 <= 0.1]
        expected = math.log(max(retained)) - below if retained else 0.0
        values = found.flatten(1)[:, place]
        torch.testing.assert_close(values, torch.full_like(values, expected))
    assert len(set(found[0].flatten().tolist())) >= 3
