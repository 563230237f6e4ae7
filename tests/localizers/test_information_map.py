"""The information map, against the detector and on a run whose information lies in one place."""

import pytest
import torch

from cryptomnesia import watch
from cryptomnesia.detectors.information import Information
from cryptomnesia.localizers import Watched
from cryptomnesia.localizers.information_map import InformationMap
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.testing.miniatures import call_oracle, oracle_pipeline
from cryptomnesia.testing.oracles import Gaussian
from cryptomnesia.tracing.generation import generate
from family_cases import CASES

SIZE = 16


def gaussian_run(mean, steps=50):
    """A run of N(mean, 1) against N(0, 1), with the evaluations of the map."""
    ones = torch.ones(2, SIZE, dtype=torch.float64)
    basis = torch.eye(SIZE, dtype=torch.float64).repeat(2, 1, 1)
    pipe = oracle_pipeline(Gaussian(mean=torch.stack([torch.zeros_like(mean), mean]), basis=basis, variances=ones))
    with watch(pipe, keep=InformationMap().evaluations) as seen:
        call_oracle(pipe, which=1, seeds=range(2), steps=steps)
    return Watched(seen.trajectory, family_of(pipe).denoiser())


@pytest.mark.parametrize("steps", [50, 7])
def test_the_map_adds_up_to_the_score_of_the_detector(steps):
    """Half of the square of a shift of the mean counts until the signal is as strong as the noise."""
    mean = torch.zeros(SIZE, dtype=torch.float64)
    mean[5] = 2.0
    seen = gaussian_run(mean, steps)
    maps = InformationMap().map(seen).values
    expected = torch.zeros(2, 4, 4)
    expected[:, 1, 1] = 0.25 * 4
    torch.testing.assert_close(maps.float(), expected, rtol=0.1 if steps == 50 else 0.5, atol=1e-6)
    score = Information().score(seen.trajectory, seen.trajectory)
    if steps == 7:
        # the run has fewer evaluations than the map has points, so the map uses all of them
        torch.testing.assert_close(maps.sum(dim=(1, 2)).float(), score, rtol=1e-4, atol=0)


def test_it_costs_no_evaluation():
    setup = CASES["sd-epsilon"].setup()
    (batch,) = generate(setup, ["a red ring", "a blue disc"], [0, 1], keep=InformationMap().evaluations)
    seen = Watched(batch.trajectory, setup.family.denoiser())
    evaluated = []
    setup.family.module.register_forward_hook(lambda *_: evaluated.append(1))
    assert (InformationMap().map(seen).values > 0).any()
    assert evaluated == []
    assert InformationMap().cost(setup) == 0
