"""The combination of stability against equal detail and information, and the parts that it is made of."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline

from cryptomnesia import Stability, UsageError
from cryptomnesia.detectors.combined import FINEST, Combined, Detail, unexplained
from cryptomnesia.detectors.information import Information
from cryptomnesia.pipelines.inputs import GRID, Shared
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import SAMPLING, stable_diffusion
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.trajectory import Trajectory

EVALUATIONS = 6


def step_of(x0, inputs=None):
    """An evaluation whose guided estimate of the picture is `x0`."""
    return SimpleNamespace(guided=SimpleNamespace(x0=x0), cond_inputs=inputs or {})


def detail(x0, inputs=None):
    return Detail()(step_of(x0, inputs), x0, None)


def runs_of(count, seed, *, shift=0.0, evaluations=EVALUATIONS):
    rng = torch.Generator().manual_seed(seed)
    norms = {
        name: (torch.randn(count, evaluations, generator=rng) * 0.2 + 1).abs()
        for name in ("delta", "information", "detail", "z")
    }
    norms["information"] += shift
    return Trajectory(tuple(range(evaluations, 0, -1)), norms, {}, torch.empty(count, 0), complete=True)


def test_detail_is_what_neighbours_differ_by():
    flat = torch.full((2, 3, 4, 4), 0.7)
    assert detail(flat).tolist() == [0, 0]
    # columns that differ by 0.05, and rows that do not
    stripes = torch.arange(4.0).mul(0.05).expand(1, 1, 4, 4)
    assert detail(stripes).item() == pytest.approx(math.log(1 + 0.05 / FINEST) / 2, rel=1e-5)
    assert detail(torch.ones(1, 1, 1, 1)).tolist() == [0]


def test_packed_latents_have_the_detail_of_the_picture():
    latents = torch.randn(2, 4, 6, 8)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    torch.testing.assert_close(detail(packed, {GRID: Shared((3, 4))}), detail(latents))


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


def test_the_score_has_both_parts():
    runs, references = runs_of(8, 1, shift=1.0), runs_of(50, 2)
    both, less = (Combined(weight=weight).running(runs, references) for weight in (2.0, 0.0))
    usual, found = (Information().running(of, references).log() for of in (references, runs))
    torch.testing.assert_close(both - less, 2 * (found - usual.mean(dim=0)) / usual.std(dim=0), rtol=1e-3, atol=1e-3)
    logs = [Stability().running(of, references).double().log() for of in (runs, references)]
    details = [of.norms["detail"].double().log() for of in (runs, references)]
    expected = unexplained(logs[0], details[0], logs[1], details[1])
    torch.testing.assert_close(less.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_scale_of_the_latents_and_the_later_evaluations_do_not_matter():
    runs, references = runs_of(8, 1), runs_of(50, 2)
    whole = Combined().running(runs, references)
    for of in (runs, references):
        of.norms["delta"] *= 7
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
    for name in ("delta", "detail", "information"):
        runs.norms[name][1, 2:] = torch.nan
    found = Combined().score(runs, references)
    assert found.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(found[[0, 2, 3]], whole[[0, 2, 3]])


def test_without_guidance_it_is_refused():
    with pytest.raises(UsageError, match="guidance"):
        Setup.of(stable_diffusion(), {"num_inference_steps": 3, "guidance_scale": 1.0}).check([Combined()])


def test_detail_is_recorded_in_a_real_run():
    setup = Setup(stable_diffusion(), SAMPLING)
    batch = next(generate(setup, ["a red ring", "a blue disc"], [1, 2], batch_size=2, norms=Combined().norms))
    found = batch.trajectory.norms["detail"]
    assert found.shape == batch.trajectory.norms["delta"].shape
    assert (found > 0).all()
