from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler

from cryptomnesia import UsageError, watch
from cryptomnesia.localizers import Collapse, Curvature, DiagonalEstimator, Watched
from cryptomnesia.localizers.collapse import guided
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.statistics import auc
from cryptomnesia.testing.miniatures import call_oracle, oracle_pipeline
from cryptomnesia.testing.oracles import FiniteSet
from family_cases import CASES
from mapped_runs import CHEAP, PLANTED, gaussian, view, watched


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("step", [0.3, -1])
def test_collapse_is_the_share_of_variance_that_is_gone(gaussian_run, step, kind):
    trajectory, oracle = gaussian_run[0], gaussian(kind)
    seen, inputs = trajectory.step(step), {"which": torch.ones(3, dtype=torch.long)}
    made = replace(seen, cond=oracle(seen.cond.x, seen.t, inputs), cond_inputs=inputs)
    alpha, sigma = made.cond.alpha, made.cond.sigma
    # of a Gaussian that was measured with noise of deviation σ/α
    posterior = 1 / (1 / oracle.variances[1].view(4, 4).float() + (alpha / sigma) ** 2)
    run = Watched(replace(trajectory, steps={seen.index: made}), oracle)
    found = Collapse(step, estimator=DiagonalEstimator(engine="exact")).estimate(run).value
    torch.testing.assert_close(found, (1 - posterior).expand(3, -1, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_collapse_of_a_network_in_half_precision_is_that_in_single(name, dtype):
    case = CASES[name]
    pipe = case.make()
    run = watched(case.setup(pipe))
    estimator = DiagonalEstimator(engine="reverse", probes=32, group=16)
    localizer, step = Collapse(1, estimator=estimator), run.trajectory.step(1)
    single = localizer.estimate(run).value

    def half(inputs):
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}

    narrow = replace(
        step,
        cond=replace(step.cond, x=step.cond.x.to(dtype), value=step.cond.value.to(dtype)),
        cond_inputs=half(step.cond_inputs),
    )
    pipe.to(dtype)
    found = localizer.estimate(replace(run, trajectory=replace(run.trajectory, steps={step.index: narrow})))
    torch.testing.assert_close(found.value, single, rtol=2e-3, atol=5e-3)


def test_collapse_refuses_a_flow_model_whose_run_is_too_short():
    def setup(name, steps, scheduler=None):
        case = CASES[name]
        pipe = case.make()
        if scheduler is not None:
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        return Setup.of(pipe, {**case.call, "num_inference_steps": steps})

    short = setup("sd3", 3)
    with pytest.raises(UsageError, match="with 3 steps collapse would look at pure noise"):
        short.check([Collapse()])
    for first in (0, -3, 0.3):
        assert not short.accepts(Collapse(first))
    short.check([Collapse(1)])
    setup("sd3", 4).check([Collapse()])
    # Heun makes nearly twice as many evaluations as steps
    with pytest.raises(UsageError, match="got the evaluation 4 of a run of 3"):
        short.check([Collapse(4)])
    heun = setup("sd3", 3, FlowMatchHeunDiscreteScheduler)
    assert heun.evaluations == 5
    heun.check([Collapse(4), Collapse(-3)])
    assert not heun.accepts(Collapse(-5))
    setup("sd-epsilon", 3, HeunDiscreteScheduler).check([Collapse(4), Curvature()])
    setup("sd-epsilon", 3).check([Collapse(), Collapse(-3), Curvature()])


def test_collapse_points_at_the_planted_half_of_a_memorizer():
    generator = torch.Generator().manual_seed(0)
    everything = 2.0 * torch.randint(0, 2, (4096, 1, 4, 4), generator=generator) - 1
    template = torch.where(PLANTED, everything[:1], everything)
    pipe = oracle_pipeline(FiniteSet((everything, template)))
    with watch(pipe, keep=(0, 0.3)) as seen:
        call_oracle(pipe, which=1, seeds=range(2), steps=50)
    localizer = Collapse(estimator=DiagonalEstimator(probes=64))
    run = Watched(seen.trajectory, view(pipe))
    maps = localizer.map(run).values
    assert (maps >= 0).all()
    for heat, share in zip(maps, localizer.estimate(run).value, strict=True):
        assert auc(heat[PLANTED].numpy(), heat[~PLANTED].numpy()) == 1
        torch.testing.assert_close(share[PLANTED], torch.ones(8), atol=0.05, rtol=0)
        assert share[~PLANTED].mean() < 0.3


def test_the_guide_of_collapse_says_something_where_there_is_no_signal_yet():
    """A flow model's first evaluation sees nothing but noise, of which the branches say the same."""
    case = CASES["sd3"]
    seen = watched(case.setup())
    first = seen.trajectory.step(0)
    assert first.cond.alpha == 0
    assert torch.equal(first.cond.epsilon, first.uncond.epsilon)
    localizer = Collapse(1, estimator=CHEAP)
    share = localizer.estimate(seen).value
    share += 1 - share.min()  # random weights give no share of anything
    assert not torch.allclose(localizer.filtered(share, seen), guided(share, torch.ones_like(share)))


def test_collapse_needs_some_signal(gaussian_run):
    first, denoiser = gaussian_run[0].step(0), gaussian_run[1]
    blind = replace(gaussian_run[0], steps={15: replace(first, cond=replace(first.cond, alpha=0.0))})
    with pytest.raises(UsageError, match="sees nothing but noise; look at a later one"):
        Collapse().estimate(Watched(blind, denoiser))


def test_a_guided_filter_takes_the_noise_and_leaves_the_edges():
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(2, 16, 16)
    truth[0, :, 5:], truth[1, 3:9] = 1, 1
    noisy = truth + torch.randn(truth.shape, generator=generator)
    guide = 5 - 3 * truth + 0.1 * torch.randn(truth.shape, generator=generator)
    found = guided(noisy, guide)
    assert (found - truth).square().mean() < (noisy - truth).square().mean() / 10
    torch.testing.assert_close(guided(noisy, 7 * guide - 2), found)
    torch.testing.assert_close(guided(3 * noisy + 1, guide), 3 * found + 1)
    torch.testing.assert_close(guided(noisy[1:], guide[1:]), found[1:])
    # without a guide only means of windows are left
    assert guided(noisy, torch.ones(2, 16, 16)).std() < noisy.std() / 2
