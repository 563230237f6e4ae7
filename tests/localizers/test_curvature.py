import pytest
import torch

from cryptomnesia import watch
from cryptomnesia.localizers import CurvatureDifference, DiagonalEstimator, Watched
from cryptomnesia.statistics import auc
from cryptomnesia.testing.miniatures import call_oracle, oracle_pipeline
from cryptomnesia.testing.oracles import FiniteSet
from mapped_runs import PLANTED, gaussian, view


@pytest.mark.parametrize(
    "estimator",
    [
        DiagonalEstimator(engine="exact"),
        # the covariances are diagonal here, so every single probe gives the exact diagonal
        DiagonalEstimator(engine="reverse", design="random", probes=1),
        DiagonalEstimator(engine="finite", probes=4, group=4),
    ],
)
def test_curvature_difference_matches_the_closed_form(gaussian_run, estimator):
    trajectory, denoiser = gaussian_run
    oracle = gaussian()
    t = trajectory.step().t
    expected = (oracle.curvature(1, t) - oracle.curvature(0, t)).diagonal().view(4, 4).float().expand(3, -1, -1)
    localizer, seen = CurvatureDifference(-1, estimator=estimator), Watched(trajectory, denoiser)
    # the rounding of fp32, over the length of the step and over σ
    torch.testing.assert_close(localizer.estimate(seen).value, expected, rtol=2e-5, atol=1e-2)
    torch.testing.assert_close(localizer.difference(seen).value, expected[:, None], rtol=2e-5, atol=1e-2)
    found, estimate = localizer.map(seen), localizer.estimate(seen)
    assert torch.equal(found.values, estimate.value.relu())
    torch.testing.assert_close(found.errors, estimate.error, rtol=0, atol=0, equal_nan=True)


def test_the_curvature_map_points_at_the_planted_half_of_a_memorizer():
    generator = torch.Generator().manual_seed(0)
    everything = 2.0 * torch.randint(0, 2, (4096, 1, 4, 4), generator=generator) - 1
    template = torch.where(PLANTED, everything[:1], everything)
    pipe = oracle_pipeline(FiniteSet((everything, template)))
    # in the middle of the run: at its end a finite set pins every pixel, planted or not
    with watch(pipe, keep=(25,)) as seen:
        call_oracle(pipe, which=1, seeds=range(2), steps=50)
    localizer = CurvatureDifference(25, estimator=DiagonalEstimator(probes=64))
    maps = localizer.map(Watched(seen.trajectory, view(pipe))).values
    for heat in maps:
        assert auc(heat[PLANTED].numpy(), heat[~PLANTED].numpy()) > 0.95
