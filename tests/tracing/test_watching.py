from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from cryptomnesia import Collapse, Curvature, GuidanceMagnitude, Sampling, UsageError, watch
from cryptomnesia.detectors import MapSignal
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.testing.miniatures import FAMILIES, SAMPLING, TRUE_GUIDANCE, flux, pictures, stable_diffusion
from cryptomnesia.tracing.trajectory import NORMS
from family_cases import FLOWS


def call(pipe, prompt="a red circle", seeds=(0,), **settings):
    return pipe(
        prompt,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
        **{"num_inference_steps": 4, "guidance_scale": 3.0, **settings},
    ).images


@pytest.mark.parametrize("family", FAMILIES)
def test_observing_leaves_the_image_bit_identical(family):
    pipe = FAMILIES[family]()
    plain = call(pipe)
    with watch(pipe, keep="all") as seen:
        watched = call(pipe)
    assert torch.equal(plain, watched)
    assert torch.equal(seen.trajectory.latents, watched)
    assert torch.equal(call(pipe), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_recombines_from_the_branches(family):
    pipe = FAMILIES[family]()
    with watch(pipe, keep="all") as seen:
        call(pipe, ["a red circle", "a blue star"], seeds=(0, 1))
    assert len(seen.trajectory.steps) == 4
    for step in seen.trajectory.steps.values():
        guided = step.uncond.value + 3.0 * (step.cond.value - step.uncond.value)
        torch.testing.assert_close(step.guided.value, guided)
        x = step.cond
        torch.testing.assert_close(x.alpha * x.x0 + x.sigma * x.epsilon, x.x, rtol=1e-4, atol=1e-5)


def test_the_conditional_branch_is_the_captions():
    pipe = stable_diffusion()
    with watch(pipe, keep=(0,)) as seen:
        call(pipe)
    step = seen.trajectory.step(0)
    caption, empty = (pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a red circle", ""))
    torch.testing.assert_close(step.cond_inputs["encoder_hidden_states"], caption)
    torch.testing.assert_close(step.uncond_inputs["encoder_hidden_states"], empty)
    alone = pipe.unet(step.cond.x, 751, encoder_hidden_states=caption).sample
    torch.testing.assert_close(step.cond.value, alone)


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [(PNDMScheduler, 5), (EulerDiscreteScheduler, 4), (HeunDiscreteScheduler, 7), (LMSDiscreteScheduler, 4)],
)
def test_every_evaluation_of_a_solver_is_counted(scheduler, evaluations):
    pipe = stable_diffusion()
    more = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **more)
    plain = call(pipe)
    with watch(pipe) as seen:
        latents = call(pipe)
    assert torch.equal(plain, latents)
    trajectory = seen.trajectory
    assert trajectory.complete
    assert trajectory.norms["delta"].shape == (1, evaluations) == (1, len(trajectory.timesteps))
    assert all(torch.isfinite(trajectory.norms[name]).all() for name in ("delta", "z", "x0", "guidance"))
    torch.testing.assert_close(trajectory.norms["z"][:, -1], latents.flatten(1).norm(dim=1))


def test_norms_are_those_of_the_kept_tensors():
    pipe = stable_diffusion("v_prediction")
    with watch(pipe, keep="all") as seen:
        latents = call(pipe, ["a red circle", "a blue star"], seeds=(0, 1))
    trajectory = seen.trajectory
    after = [trajectory.steps[index].sample for index in (1, 2, 3)] + [latents]
    for index, z in enumerate(after):
        step = trajectory.steps[index]
        torch.testing.assert_close(trajectory.norms["delta"][:, index], (z - step.sample).flatten(1).norm(dim=1))
        torch.testing.assert_close(trajectory.norms["x0"][:, index], step.guided.x0.flatten(1).norm(dim=1))
        apart = (step.cond.value - step.uncond.value).flatten(1).norm(dim=1)
        torch.testing.assert_close(trajectory.norms["guidance"][:, index], apart)
        if index:
            moved = (step.cond.x0 - trajectory.steps[index - 1].cond.x0).flatten(1).norm(dim=1)
            torch.testing.assert_close(trajectory.norms["drift"][:, index], moved)
    assert trajectory.norms["drift"][:, 0].isnan().all()


def test_several_prompts_and_images_per_prompt_do_not_mix():
    pipe = stable_diffusion()
    with watch(pipe) as seen:
        call(pipe, ["a red circle", "a blue star"], seeds=(0, 1, 2, 3), num_images_per_prompt=2)
        call(pipe, "a blue star", seeds=(2,))
    many, one = seen.trajectories
    assert many.norms["delta"].shape[0] == 4
    torch.testing.assert_close(many.norms["delta"][2:3], one.norms["delta"])


def test_rows_of_a_trajectory_are_its_images():
    pipe = FAMILIES["sdxl"]()
    with watch(pipe, keep=(-1,)) as seen:
        call(pipe, ["a red circle", "a blue star"], seeds=(0, 1))
    second = seen.trajectory.rows([1])
    assert second.step().cond.x.shape[0] == 1
    assert torch.equal(second.norms["z"][0], seen.trajectory.norms["z"][1])
    embeds = "added_cond_kwargs", "text_embeds"
    assert torch.equal(
        second.step().cond_inputs[embeds[0]][embeds[1]][0],
        seen.trajectory.step().cond_inputs[embeds[0]][embeds[1]][1],
    )


def test_without_guidance_there_is_no_unconditional_branch():
    pipe = stable_diffusion()
    with watch(pipe, keep=(-1,)) as seen:
        call(pipe, guidance_scale=1.0)
    assert seen.trajectory.step().uncond is None
    assert seen.trajectory.norms["guidance"].isnan().all()


def test_nothing_stays_behind_after_an_exception():
    pipe = stable_diffusion()
    plain = call(pipe)
    methods = set(vars(pipe.scheduler))

    def stop(pipe, index, t, values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watch(pipe) as seen:
        call(pipe, callback_on_step_end=stop)
    assert not pipe.unet._forward_hooks
    assert "step" not in vars(pipe.scheduler)
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert methods <= set(vars(pipe.scheduler))
    assert torch.equal(call(pipe), plain)
    assert not seen.trajectory.complete
    assert seen.trajectory.norms["delta"].shape == (1, 1)


def test_a_run_cut_short_cannot_be_scored():
    pipe = stable_diffusion()

    def stop(pipe, index, t, values):
        pipe._interrupt = index == 1
        return values

    with watch(pipe) as seen:
        call(pipe, callback_on_step_end=stop)
    assert not seen.trajectory.complete
    trajectory = seen.trajectory
    assert GuidanceMagnitude("mean").score(trajectory, trajectory).isnan().all()
    assert not GuidanceMagnitude("first").score(trajectory, trajectory).isnan().any()


def test_a_nested_watch_sees_the_same():
    pipe = stable_diffusion()
    with watch(pipe) as outer, watch(pipe) as inner:
        call(pipe)
    assert torch.equal(outer.trajectory.norms["delta"], inner.trajectory.norms["delta"])
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("make", [stable_diffusion, flux])
@pytest.mark.parametrize("inside", [True, False])
def test_no_watch_sees_the_evaluations_of_a_signal(make, inside):
    pipe = make()
    sampling = SAMPLING if make is stable_diffusion else Sampling(4, 1.0, 16, 16, options=TRUE_GUIDANCE)
    arguments = family_of(pipe).arguments(["a red circle"], sampling) | {"output_type": "latent"}

    def run():
        return pipe(**arguments, generator=torch.Generator().manual_seed(0))

    with watch(pipe) as plain:
        run()
    # one conditional evaluation more than an even number of them
    signals = [MapSignal(Curvature()), MapSignal(Collapse())]
    first, second = ((), signals) if inside else (signals, ())
    with watch(pipe, signals=first) as outer, watch(pipe, signals=second) as inner:
        run()
    for seen in (outer, inner):
        for name in ("delta", "guidance", "drift"):
            torch.testing.assert_close(seen.trajectory.norms[name], plain.trajectory.norms[name], equal_nan=True)
    assert set((inner if inside else outer).trajectory.signals) == {"curvature", "collapse"}


def test_the_model_may_be_evaluated_between_generations():
    pipe = stable_diffusion()
    with watch(pipe, keep=(-1,)) as seen:
        call(pipe)
        step = seen.trajectory.step()
        pipe.unet(step.cond.x, 1, **step.cond_inputs)
        call(pipe)
    assert [trajectory.complete for trajectory in seen.trajectories] == [True, True]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_a_callback_asks_the_network_is_no_branch(guidance):
    pipe = stable_diffusion()
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def ask(pipe, index, t, values):
        pipe.unet(2 * values["latents"].expand(3, -1, -1, -1), t, values["prompt_embeds"][-1:].expand(3, -1, -1))
        other("a blue star", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        return values

    def run(**more):
        call = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "latent"}
        with watch(pipe) as seen:
            pipe("a red circle", **call, generator=torch.Generator().manual_seed(0), **more)
        return seen.trajectory

    plain = run()
    asked = run(callback_on_step_end=ask, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    for name, values in plain.norms.items():
        assert torch.equal(values.nan_to_num(), asked.norms[name].nan_to_num()), name


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_conditioning_that_a_callback_changes_is_recorded_as_it_is_given(guidance):
    pipe = stable_diffusion()
    given = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )

    def change(pipe, index, t, values):
        if index == 1:
            return {"prompt_embeds": values["prompt_embeds"] + 1}
        return {}

    call = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "latent"}
    with watch(pipe, keep="all") as seen:
        pipe("a red circle", **call, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    for number, embeddings in enumerate(given):
        step = seen.trajectory.step(number)
        branches = [step.cond_inputs] if step.uncond_inputs is None else [step.uncond_inputs, step.cond_inputs]
        assert torch.equal(torch.cat([inputs["encoder_hidden_states"] for inputs in branches]), embeddings)
    assert not torch.equal(given[1], given[2])


def test_a_run_without_a_step_is_explained():
    pipe = pictures.image_to_image()
    call = {"num_inference_steps": 3, "guidance_scale": 2.0, "strength": 0.0, "output_type": "latent"}
    with watch(pipe) as seen:
        pipe("a red circle", **call, **pictures.IMAGE)
    with pytest.raises(UsageError, match=r"took no step of the solver .* a larger `strength`"):
        _ = seen.trajectory


def test_steering_replaces_what_the_solver_is_given():
    pipe = stable_diffusion()
    with watch(pipe, keep="all", steer=lambda step, solver: torch.zeros_like(step.guided.value)) as seen:
        latents = call(pipe)
    alpha = seen.trajectory.steps[0].guided.alpha
    last = pipe.scheduler.final_alpha_cumprod.sqrt()
    torch.testing.assert_close(latents, seen.trajectory.steps[0].sample * last / alpha)


def test_bad_use_is_explained():
    pipe = stable_diffusion()
    with (
        pytest.raises(UsageError, match=r"unknown family dict; known are .*DDIMPipeline, .*, StableDiffusionPipeline"),
        watch({}),
    ):
        pass
    with watch(pipe) as seen:
        with pytest.raises(UsageError, match="no generation was watched"):
            seen.trajectory  # noqa: B018
        call(pipe)
    with pytest.raises(UsageError, match=r"step -1 of 4 holds no tensors .* keep=\(-1,\)"):
        seen.trajectory.step()
    with pytest.raises(UsageError, match=r"evaluation 4 of a run of 4; give one in 0 … 3"), watch(pipe, keep=(4,)):
        call(pipe)


@dataclass(frozen=True)
class Angle:
    """Cosine of the angle between the guided predictions of an evaluation and the one before: a norm of one's own."""

    name: str = "angle"

    def __call__(self, step, latents, previous):
        if previous is None:
            return torch.full((len(latents),), torch.nan)
        first, second = step.guided.value.flatten(1), previous.guided.value.flatten(1)
        return torch.cosine_similarity(first, second)


@dataclass(frozen=True)
class Brightest:
    """The largest value of the clean estimate at an evaluation: a signal of one's own."""

    name: str = "brightest"
    evaluations: tuple[Any, ...] = (0.5,)

    def describe(self):
        return f"largest value at {self.evaluations}"

    def __call__(self, trajectory, denoiser):
        step = trajectory.step(self.evaluations[0])
        return denoiser(step.cond.x, step.level, step.cond_inputs).x0.flatten(1).amax(dim=1)


def test_a_norm_and_a_signal_of_ones_own_are_recorded():
    pipe = stable_diffusion()
    plain = call(pipe, ["a red circle", "a blue star"], seeds=(0, 1))
    with watch(pipe, keep="all", norms=[Angle()], signals=[Brightest()]) as seen:
        assert torch.equal(call(pipe, ["a red circle", "a blue star"], seeds=(0, 1)), plain)
    trajectory = seen.trajectory
    assert trajectory.norms.keys() == {*NORMS, "angle"}
    assert trajectory.norms["angle"].dtype == torch.float32
    assert trajectory.norms["angle"].shape == (2, 4)
    assert trajectory.norms["angle"][:, 0].isnan().all()
    for number in range(1, 4):
        first, second = (trajectory.steps[at].guided.value.flatten(1) for at in (number, number - 1))
        expected = torch.cosine_similarity(first, second)
        torch.testing.assert_close(trajectory.norms["angle"][:, number], expected)
    largest = trajectory.step(2).cond.x0.flatten(1).amax(dim=1)
    torch.testing.assert_close(trajectory.signals["brightest"], largest, rtol=1e-3, atol=1e-4)
    second = trajectory.rows([1])
    torch.testing.assert_close(second.norms["angle"], trajectory.norms["angle"][1:], equal_nan=True)
    torch.testing.assert_close(second.signals["brightest"], trajectory.signals["brightest"][1:])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("kind", ["norms", "signals"])
def test_a_reserved_name_is_refused(pipe, name, kind):
    recorded = Angle(name) if kind == "norms" else Brightest(name)
    with (
        pytest.raises(UsageError, match=f"called '{name}', which is always recorded"),
        watch(pipe, **{kind: [recorded]}),
    ):
        pass
    assert "step" not in vars(pipe.scheduler)


def test_two_norms_or_signals_of_one_name_are_refused(pipe):
    for more in (
        {"norms": [Angle("a"), Angle("a")]},
        {"norms": [Angle("a")], "signals": [Brightest("a")]},
    ):
        with pytest.raises(UsageError, match="two norms or signals called 'a'"), watch(pipe, **more):
            pass


def test_values_of_a_wrong_shape_are_refused():
    pipe = stable_diffusion()

    class Whole(Angle):
        def __call__(self, step, latents, previous):
            return latents.norm()

    class Mean(Brightest):
        def __call__(self, trajectory, denoiser):
            return torch.zeros(3)

    with (
        pytest.raises(UsageError, match=r"'angle' gave values of shape \(\) for 1 images"),
        watch(pipe, norms=[Whole()]),
    ):
        call(pipe)
    with (
        pytest.raises(UsageError, match=r"'brightest' gave values of shape \(3,\) for 1"),
        watch(pipe, signals=[Mean()]),
    ):
        call(pipe)
    assert "step" not in vars(pipe.scheduler)


def test_captions_that_the_pipeline_rewrites_are_not_taken_for_those_of_the_call():
    """Z-Image puts the captions of a list into a template, in that list."""
    case = FLOWS["z-image"]
    pipe = case.make()
    prompts = ["a red circle"]
    with watch(pipe) as seen:
        pipe(prompts, output_type="latent", **case.call)
    assert prompts != ["a red circle"]
    assert seen.trajectory.prompts is None
