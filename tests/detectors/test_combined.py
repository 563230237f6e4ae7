"""The combination of three detectors, and the parts that it is made of."""

import pytest
import torch

from cryptomnesia import GuidanceMagnitude, Stability, UsageError
from cryptomnesia.detectors.combined import Combined, unexplained
from cryptomnesia.detectors.information import Information
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.tracing.trajectory import Trajectory

EVALUATIONS = 6


def runs_of(count, seed, *, shift=0.0, evaluations=EVALUATIONS):
    rng = torch.Generator().manual_seed(seed)
    norms = {
        name: (torch.randn(count, evaluations, generator=rng) * 0.2 + 1).abs()
        for name in ("delta", "guidance", "detail", "information", "z")
    }
    norms["guidance"] += shift
    return Trajectory(tuple(range(evaluations, 0, -1)), norms, {}, torch.empty(count, 0), complete=True)


def test_a_quadratic_dependence_is_taken_out_and_not_continued():
    rng = torch.Generator().manual_seed(0)
    usual_by = torch.rand(400, 3, generator=rng, dtype=torch.float64)
    noise = torch.randn(400, 3, generator=rng, dtype=torch.float64)

    def curve(of):
        return 1 - 3 * of + 2 * of**2

    by = torch.stack([usual_by.amin(dim=0), usual_by.mean(dim=0), usual_by.amax(dim=0), usual_by.amax(dim=0) + 5])
    known = unexplained(curve(by), by, curve(usual_by) + 0.1 * noise, usual_by)
    assert known[:3].abs().max() < 1
    # beyond the references the curve goes on, and the fit does not
    assert (known[3] > 100).all()
    same_as_highest = unexplained(curve(by)[[2]], by[[3]], curve(usual_by) + 0.1 * noise, usual_by)
    torch.testing.assert_close(same_as_highest, known[[2]])


def test_references_of_equal_detail_are_no_obstacle():
    """Nothing can be said about the dependence then, and what is left is the z-score."""
    rng = torch.Generator().manual_seed(0)
    usual, values = torch.randn(30, 2, generator=rng).double(), torch.randn(5, 2, generator=rng).double()
    found = unexplained(values, torch.ones(5, 2).double(), usual, torch.ones(30, 2).double())
    torch.testing.assert_close(found, (values - usual.mean(dim=0)) / usual.std(dim=0), rtol=1e-5, atol=1e-5)


def test_the_score_is_the_mean_of_three_z_scores():
    runs, references = runs_of(8, 1, shift=1.0), runs_of(50, 2)
    logs = [Stability().running(of, references).double().log() for of in (runs, references)]
    details = [of.norms["detail"].double().log() for of in (runs, references)]
    parts = [unexplained(logs[0], details[0], logs[1], details[1])]
    for judge in (GuidanceMagnitude(), Information()):
        found, usual = (judge.running(of, references).double().log() for of in (runs, references))
        parts.append((found - usual.mean(dim=0)) / usual.std(dim=0))
    expected = torch.stack(parts).mean(dim=0)
    torch.testing.assert_close(Combined().running(runs, references).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_scale_of_the_norms_and_the_later_evaluations_do_not_matter():
    runs, references = runs_of(8, 1), runs_of(50, 2)
    whole = Combined().running(runs, references)
    for of in (runs, references):
        of.norms["delta"] *= 7
        of.norms["guidance"] *= 7
        of.norms["information"] *= 7
    torch.testing.assert_close(Combined().running(runs, references), whole, rtol=1e-3, atol=1e-3)
    begun = Trajectory(
        runs.timesteps,
        {name: values[:, :3] for name, values in runs.norms.items()},
        {},
        runs.latents,
        complete=False,
    )
    torch.testing.assert_close(Combined().running(begun, references), whole[:, :3], rtol=1e-3, atol=1e-3)


def test_an_image_that_is_not_finite_has_no_score_and_the_others_keep_theirs():
    runs, references = runs_of(4, 1), runs_of(50, 2)
    whole = Combined().score(runs, references)
    for name in ("delta", "detail", "guidance", "information"):
        runs.norms[name][1, 2:] = torch.nan
    found = Combined().score(runs, references)
    assert found.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(found[[0, 2, 3]], whole[[0, 2, 3]])


def test_without_guidance_it_is_refused():
    with pytest.raises(UsageError, match="guidance"):
        Setup.of(stable_diffusion(), {"num_inference_steps": 3, "guidance_scale": 1.0}).check([Combined()])
