import diffusers
import pytest
import torch

from cryptomnesia import UsageError, watch
from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.tracing.steering import STEERABLE, SolverStep, check_steerable
from solvers import NOISY, SOLVERS, call, with_solver


def test_every_steerable_solver_is_tested():
    assert {kind for kind, _ in SOLVERS.values()} | {"FlowMatchEulerDiscreteScheduler"} == STEERABLE


@pytest.mark.parametrize("name", SOLVERS)
def test_trying_a_step_changes_nothing(name):
    pipe = with_solver(name)
    plain = call(pipe, name)
    tried, reached = [], []

    def look(step, solver):
        tried.append(solver.after(step.guided.value))
        reached.append(step.sample)
        assert torch.equal(solver.after(step.guided.value), tried[-1])

    with watch(pipe, steer=look):
        latents = call(pipe, name)
    assert torch.equal(latents, plain)
    for expected, found in zip(tried, [*reached[1:], latents], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_steered_solver_lands_where_it_is_wanted(name, prediction):
    """At every evaluation of a run, so that a history that disagreed with the latents would show at the next one."""
    pipe = with_solver(name, prediction)
    generator = torch.Generator().manual_seed(0)
    wanted, reached = [], []

    def steer(step, solver):
        after = solver.after(step.guided.value)
        wanted.append(after * (1 + 0.05 * torch.randn(after.shape, generator=generator)))
        reached.append(step.sample)
        return solver.landing(step.guided.value, after, wanted[-1])

    with watch(pipe, steer=steer):
        latents = call(pipe, name)
    for expected, found in zip(wanted, [*reached[1:], latents], strict=True):
        assert (found - expected).norm() < 1e-3 * expected.norm()
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", [name for name in SOLVERS if not any(word in name for word in NOISY)])
def test_alpha_after_is_the_share_of_x0_in_the_next_latents(name):
    """Without any noise, a prediction of ε = 0 throughout, the latents are α_after·x̂0 after every step."""
    pipe = with_solver(name)
    seen = []

    def silent(step, solver):
        seen.append((solver.alpha_after, step.sample))
        return torch.zeros_like(step.guided.value)

    with watch(pipe, steer=silent):
        latents = call(pipe, name)
    after = [sample for _, sample in seen[1:]] + [latents]
    x0 = latents / seen[-1][0]
    for (alpha, _), found in zip(seen, after, strict=True):
        torch.testing.assert_close(found, alpha * x0, rtol=2e-2, atol=1e-3)


def test_flow_matching_lands_where_it_is_wanted():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn((2, 4, 8, 8), generator=generator)
    for t in scheduler.timesteps:
        value, wanted = (torch.randn(sample.shape, generator=generator) for _ in range(2))
        solver = SolverStep(scheduler, (t, sample), {"return_dict": False}, 1.0)
        value = solver.landing(value, solver.after(value), wanted)
        sample = scheduler.step(value, t, sample, return_dict=False)[0]
        torch.testing.assert_close(sample, wanted, rtol=1e-4, atol=1e-4)


def test_a_solver_without_generators_draws_the_same_noise_after_a_trial():
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(4)
    sample, value = torch.randn(2, 1, 4, 8, 8)
    scheduler.scale_model_input(sample, scheduler.timesteps[0])
    solver = SolverStep(scheduler, (scheduler.timesteps[0], sample), {"return_dict": False}, 1.0)
    tried = solver.after(value)
    assert torch.equal(scheduler.step(value, scheduler.timesteps[0], sample, return_dict=False)[0], tried)


def test_what_cannot_be_steered_is_explained():
    with pytest.raises(UsageError, match=r"cannot steer a LCMScheduler; known are DDIMScheduler, DDPM"):
        check_steerable(diffusers.LCMScheduler())
    with pytest.raises(UsageError, match="DDIMScheduler with clip_sample=True"):
        check_steerable(diffusers.DDIMScheduler())
    with pytest.raises(UsageError, match="DPMSolverMultistepScheduler with thresholding=True"):
        check_steerable(diffusers.DPMSolverMultistepScheduler(thresholding=True))
    # a scheduler that was changed behind its configuration still cannot be steered silently wrong
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(4)
    sample = torch.randn(1, 4, 8, 8)
    solver = SolverStep(scheduler, (scheduler.timesteps[-1], sample), {}, 1.0)
    with pytest.raises(UsageError, match="does not depend on its prediction in an affine way"):
        solver.landing(sample, solver.after(sample), sample)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_that_does_not_depend_on_its_prediction_is_left_alone(prediction):
    """The last one of DDIM with spacing "linspace" goes from ᾱ_0 to ᾱ_0."""
    pipe = stable_diffusion(prediction)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace", clip_sample=False
    )
    moved = []

    def steer(step, solver):
        after = solver.after(step.guided.value)
        value = solver.landing(step.guided.value, after, 0.9 * after)
        moved.append(not torch.equal(value, step.guided.value))
        return value

    with watch(pipe, steer=steer):
        call(pipe, "DDIM")
    assert moved == [True] * 7 + [False]
