"""The noise level of every step, against what the solver itself takes for the clean picture at that step."""

from inspect import signature
from itertools import pairwise

import diffusers
import pytest
import torch

from cryptomnesia import Sampling, UsageError, load_pipeline, watch
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.schedule import Level, level_at
from cryptomnesia.pipelines.solvers import KNOWN, level_of
from cryptomnesia.testing.miniatures import stable_diffusion, stable_diffusion_3, unet

GRIDS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"timestep_spacing": "trailing"})
SOLVERS = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    ("DDPMScheduler", {}),
    *[("EulerDiscreteScheduler", grid) for grid in GRIDS],
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 120.0}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("EulerAncestralDiscreteScheduler", {}),
    *[("HeunDiscreteScheduler", grid) for grid in GRIDS[:2]],
    *[("KDPM2DiscreteScheduler", grid) for grid in GRIDS[:2]],
    *[("KDPM2AncestralDiscreteScheduler", grid) for grid in GRIDS[:2]],
    *[("LMSDiscreteScheduler", grid) for grid in GRIDS[:2]],
    *[("DPMSolverMultistepScheduler", grid) for grid in GRIDS],
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    *[("DPMSolverSinglestepScheduler", grid) for grid in GRIDS[:3]],
    *[("UniPCMultistepScheduler", grid) for grid in GRIDS],
    *[("SASolverScheduler", grid) for grid in GRIDS[:2]],
    ("EDMEulerScheduler", {"sigma_data": 1.0}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 1.0}),
]


def with_solver(name, options, prediction):
    pipe = stable_diffusion(prediction)
    kind = getattr(diffusers, name)
    if name.startswith("EDM"):
        pipe.scheduler = kind(prediction_type=prediction, **options)
        return pipe
    more = {"clip_sample": False} if "clip_sample" in signature(kind).parameters else {}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **more, **options)
    return pipe


def solvers_own_estimates(scheduler):
    """A list that fills with what the solver takes for the clean picture at every step."""
    estimates = []
    if hasattr(scheduler, "convert_model_output"):
        convert = scheduler.convert_model_output

        def converted(*args, **kwargs):
            estimates.append(convert(*args, **kwargs))
            return estimates[-1]

        scheduler.convert_model_output = converted
    else:
        step = scheduler.step

        def stepped(*args, return_dict=True, **kwargs):
            result = step(*args, return_dict=True, **kwargs)
            estimates.append(getattr(result, "pred_original_sample", getattr(result, "denoised", None)))
            return (result.prev_sample,)

        # pipelines look at the signature, for `eta` and `generator`
        stepped.__signature__ = signature(step)
        scheduler.step = stepped
    return estimates


CASES = [
    pytest.param(name, options, prediction, id=f"{name} {options} {prediction}")
    for name, options in SOLVERS
    for prediction in ("epsilon", "v_prediction")
    # such models predict v
    if prediction != "epsilon" or not (name.startswith("EDM") or options.get("rescale_betas_zero_snr"))
]


@pytest.mark.parametrize(("name", "options", "prediction"), CASES)
def test_the_recorded_estimate_is_the_solvers_own(name, options, prediction):
    pipe = with_solver(name, options, prediction)
    estimates = solvers_own_estimates(pipe.scheduler)
    with watch(pipe, keep="all") as seen:
        pipe("a red circle", num_inference_steps=10, guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    steps = list(seen.trajectory.steps.values())
    assert seen.trajectory.complete
    assert len(steps) == len(seen.trajectory.timesteps)
    for step, estimate in zip(steps, estimates, strict=True):
        scale = estimate.norm() + step.sample.norm() * 1e-3
        assert (step.guided.x0 - estimate).norm() < 2e-4 * scale, step.index
        assert step.cond.alpha**2 + step.cond.sigma**2 == pytest.approx(1)
        # what the network saw is what the level says: the sample, scaled
        assert (step.cond.x.norm() / step.sample.norm()).item() == pytest.approx(
            step.cond.alpha if name in _SCALING else 1.0, rel=1e-5
        )


_SCALING = {name for name, _ in SOLVERS if name.startswith(("Euler", "Heun", "KDPM2", "LMS", "EDM"))}


def test_every_known_solver_is_tried_or_named():
    elsewhere = {
        "DDIMParallelScheduler",  # DDIM and DDPM for many timesteps at once
        "DDPMParallelScheduler",
        "LCMScheduler",  # mix the estimate with the sample; see the test of levels
        "TCDScheduler",
        "DEISMultistepScheduler",  # gives no estimate; see the test of levels
        "DPMSolverSDEScheduler",  # needs torchsde
        "PNDMScheduler",  # gives no estimate; see the test of levels
        "FlowMatchEulerDiscreteScheduler",  # see the tests of flow
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
    }
    assert {name for name, _ in SOLVERS} | elsewhere == KNOWN


def test_a_continuous_timestep_counts_the_noise_and_no_trained_timestep():
    scheduler = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0]
    level = level_of(scheduler, t)
    assert level.sigma / level.alpha == pytest.approx(float(scheduler.sigmas[0]), rel=1e-6)
    assert level.sigma / level.alpha > 8
    assert level.t == pytest.approx(0.25 * float(scheduler.sigmas[0].log()))


@pytest.mark.parametrize("name", ["PNDMScheduler", "DEISMultistepScheduler", "LCMScheduler", "TCDScheduler"])
def test_trained_timesteps_have_the_trained_level(name):
    pipe = with_solver(name, {}, "epsilon")
    bars = pipe.scheduler.alphas_cumprod
    with watch(pipe, keep="all") as seen:
        pipe("a red circle", num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="latent")
    for step in seen.trajectory.steps.values():
        assert step.cond.alpha == pytest.approx(bars[int(step.t)].sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
@pytest.mark.parametrize("options", [{}, {"shift": 3.0}], ids=["plain", "shifted"])
def test_straight_paths_have_the_level_of_their_own_grid(name, options):
    pipe = stable_diffusion_3()
    pipe.scheduler = getattr(diffusers, name)(**options)
    with watch(pipe, keep="all") as seen:
        pipe("a red circle", num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="latent")
    steps = list(seen.trajectory.steps.values())
    for step in steps:
        assert step.cond.alpha + step.cond.sigma == pytest.approx(1)
        assert step.cond.sigma == pytest.approx(step.t / 1000, rel=1e-5)
    if name == "FlowMatchEulerDiscreteScheduler":
        for step, following in pairwise(steps):
            moved = step.sample + (following.cond.sigma - step.cond.sigma) * step.guided.value
            torch.testing.assert_close(moved, following.sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_solvers_of_noise_solve_straight_paths_when_asked(name):
    pipe = stable_diffusion_3()
    kind = getattr(diffusers, name)
    pipe.scheduler = kind(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    estimates = solvers_own_estimates(pipe.scheduler)
    with watch(pipe, keep="all") as seen:
        pipe("a red circle", num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="latent")
    for step, estimate in zip(seen.trajectory.steps.values(), estimates, strict=True):
        torch.testing.assert_close(step.guided.x0, estimate, rtol=1e-3, atol=1e-4)
    pipe.scheduler = kind(prediction_type="epsilon")
    with pytest.raises(UsageError, match=r"which .*Scheduler does not solve; set use_flow_sigmas"):
        watch(pipe).__enter__()
    pipe.scheduler = kind(prediction_type="epsilon", use_flow_sigmas=True)
    with pytest.raises(UsageError, match="use_flow_sigmas=True; set 'flow_prediction' and True"):
        watch(pipe).__enter__()


def misfits():
    edm = diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0)
    euler = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    yield "DDIM for EDM", stable_diffusion(), diffusers.DDIMScheduler.from_config(edm.config), "continuous σ"
    yield "DDIM for CosXL", stable_diffusion(), diffusers.DDIMScheduler.from_config(euler.config), "continuous σ"
    yield "flow for SD", stable_diffusion(), diffusers.FlowMatchEulerDiscreteScheduler(), "not trained on rectified"
    yield "DDIM for SD3", stable_diffusion_3(), diffusers.DDIMScheduler(), "trained on rectified flow"
    sana = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    for kind in (diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler):
        # the setting stays in the configuration, and the solver does not know it
        yield f"{kind.__name__} for Sana", stable_diffusion_3(), kind.from_config(sana.config), "does not solve"
    yield "EDM of other data", stable_diffusion(), diffusers.EDMEulerScheduler(), "sigma_data=0.5"
    yield "IPNDM", stable_diffusion(), diffusers.IPNDMScheduler(), "noise level at a step is not known"
    yield "inverse", stable_diffusion(), diffusers.DDIMInverseScheduler(), "noise level at a step is not known"


@pytest.mark.parametrize(("pipe", "scheduler", "message"), [pytest.param(*c[1:], id=c[0]) for c in misfits()])
def test_a_scheduler_that_does_not_solve_the_model_is_refused(pipe, scheduler, message):
    pipe.scheduler = scheduler
    with pytest.raises(UsageError, match=message) as refused:
        family_of(pipe)
    assert "\n" not in str(refused.value)


def test_a_latent_consistency_model_needs_its_own_solver():
    pipe = stable_diffusion()
    pipe.register_modules(unet=unet(time_cond_proj_dim=16))
    with pytest.raises(UsageError, match=r"latent consistency model, which DDIMScheduler does not solve; use LCM"):
        family_of(pipe)
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    assert not family_of(pipe).guided_in(Sampling(steps=4, guidance=8.0))


def test_an_own_subclass_of_a_solver_keeps_its_level():
    class Mine(diffusers.EulerDiscreteScheduler):
        pass

    pipe = stable_diffusion()
    pipe.scheduler = Mine.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.scheduler.set_timesteps(5)
    level = level_of(pipe.scheduler, pipe.scheduler.timesteps[0])
    assert level.sigma / level.alpha == pytest.approx(float(pipe.scheduler.sigmas[0]), rel=1e-6)


def test_own_subclasses_of_solvers_of_flow_and_of_edm_are_known_as_well():
    class Straight(diffusers.FlowMatchEulerDiscreteScheduler):
        pass

    class Continuous(diffusers.EDMEulerScheduler):
        pass

    flow, edm = stable_diffusion_3(), stable_diffusion("v_prediction")
    flow.scheduler, edm.scheduler = Straight(), Continuous(sigma_data=1.0, prediction_type="v_prediction")
    assert (family_of(flow).kind, family_of(edm).kind) == ("flow_prediction", "v_prediction")
    assert level_at(family_of(edm).schedule, 0.0).sigma == pytest.approx(0.5**0.5)


def test_a_denoiser_wants_a_level_because_a_timestep_does_not_tell_it():
    pipe = stable_diffusion()
    family = family_of(pipe)
    with pytest.raises(UsageError, match=r"give `step.level` of a run"):
        family.denoiser()(torch.zeros(1, 4, 8, 8), 500, {})  # type: ignore[arg-type]
    assert level_at(family.schedule, 500) == Level(500.0, *(v.item() for v in family.schedule(500)))


def test_the_bundled_model_is_not_solved_by_solvers_of_rectified_flow():
    pipe = load_pipeline("bundled")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UsageError, match="not trained on rectified flow"):
        family_of(pipe)
