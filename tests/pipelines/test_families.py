"""What every model family promises, each on a random miniature."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline

from cryptomnesia import Regenerate, Sampling, StabilityRule, UsageError, calibrate, detect, guard, watch
from cryptomnesia.detectors import free_detectors
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import entries
from cryptomnesia.testing.miniatures import (
    PROMPTS,
    TRUE_GUIDANCE,
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from cryptomnesia.tracing.generation import generate
from family_cases import FLOWS, MORE, SHORT


def rescaled(guided: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """Scaled to the norm of the conditional prediction along the last dimension."""
    return guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Family:
    """A miniature, the settings of its calls, and how much it is guided by (None: not at all).

    The guided prediction is uncond + scale·(cond − uncond), which `finish` changes with regard to the conditional one.
    """

    make: Any
    settings: Sampling | Mapping[str, Any]
    scale: float | None
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda guided, _: guided

    @cached_property
    def sampling(self) -> Sampling:
        given = self.settings
        return given if isinstance(given, Sampling) else Setup.of(self.make(), dict(given)).sampling

    def call(self, pipe: Any) -> dict[str, Any]:
        """The settings as arguments of a call."""
        arguments = family_of(pipe).arguments([""], self.sampling)
        return {name: value for name, value in arguments.items() if name not in ("prompt", "batch_size")}


CASES = {
    "sd-epsilon": Family(stable_diffusion, Sampling(4, 2.0), 2.0),
    "sd-v": Family(lambda: stable_diffusion("v_prediction"), Sampling(4, 2.0), 2.0),
    "sd unguided": Family(stable_diffusion, Sampling(4, 1.0), None),
    "sdxl": Family(stable_diffusion_xl, Sampling(4, 2.0), 2.0),
    "sd3": Family(stable_diffusion_3, Sampling(4, 2.0), 2.0),
    "sd3 unguided": Family(stable_diffusion_3, Sampling(4, 1.0), None),
    "flux distilled": Family(flux, Sampling(4, 3.5, 16, 16, options=SHORT), None),
    "flux true guidance": Family(flux, Sampling(4, 1.0, 16, 16, options={**TRUE_GUIDANCE, **SHORT}), 2.0),
    "ddim": Family(unconditional, Sampling(4, 1.0), None),
    "ddpm": Family(lambda: unconditional(DDPMPipeline), Sampling(4, 1.0), None),
    **{
        name: Family(
            case.make,
            case.call,
            None if name in ("flux inpainting", "flux 2", "flux 2 edited") else 2.0,
            rescaled if name in ("qwen-image", "lumina 2") else lambda guided, _: guided,
        )
        for name, case in FLOWS.items()
    },
}


LIKE = {
    "sd3 image to image",
    "sd3 inpainting",
    "flux image to image",
    "flux inpainting",
    "flux 2",
    "flux 2 edited",
    "chroma",
    "aura flow",
    "hidream",
}
"""Those that are read as another case is."""


@pytest.fixture(params=CASES)
def family(request):
    return CASES[request.param]


def call(pipe: Any, family: Family, seeds: tuple[int, ...] = (0, 1), **more: Any) -> Any:
    arguments = family_of(pipe).arguments(["a red circle", "a blue star"][: len(seeds)], family.sampling)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(**arguments, generator=generators, **{"output_type": "pt", **more}).images


def test_every_family_is_tested():
    made = [case.make() for case in (*CASES.values(), *MORE.values())]
    assert {type(pipe).__name__ for pipe in made} == set(entries("family"))


def test_observing_leaves_the_image_bit_identical(family):
    pipe = family.make()
    plain = call(pipe, family)
    with watch(pipe, keep="all") as seen:
        watched = call(pipe, family)
    assert torch.equal(watched, plain)
    assert seen.trajectory.complete
    assert seen.trajectory.norms["delta"].shape == (2, 4)
    assert torch.equal(call(pipe, family), plain)


def test_the_branches_recombine_and_agree_with_the_differentiable_view(family):
    pipe = family.make()
    with watch(pipe, keep="all") as seen:
        call(pipe, family)
    view = family_of(pipe).denoiser()
    for step in seen.trajectory.steps.values():
        assert (step.uncond is None) == (family.scale is None)
        guided = step.cond.value
        if step.uncond is not None:
            assert (step.cond.value - step.uncond.value).abs().max() > 1e-3
            guided = step.uncond.value + family.scale * (step.cond.value - step.uncond.value)
            guided = family.finish(guided, step.cond.value)
            again = view(step.uncond.x, step.level, step.uncond_inputs).value
            torch.testing.assert_close(again, step.uncond.value, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(step.guided.value, guided, rtol=1e-4, atol=1e-5)
        again = view(step.cond.x, step.level, step.cond_inputs).value
        torch.testing.assert_close(again, step.cond.value, rtol=1e-3, atol=1e-4)
        x = step.cond
        torch.testing.assert_close(x.alpha * x.x0 + x.sigma * x.epsilon, x.x, rtol=1e-3, atol=1e-4)
    one = seen.trajectory.rows([1]).step(-1)
    torch.testing.assert_close(view(one.cond.x, one.level, one.cond_inputs).value, one.cond.value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE else []) for name in CASES]
)
def test_the_whole_chain_from_calibration_to_guard(name):
    family = CASES[name]
    pipe = family.make()
    settings = family.call(pipe)
    calibration = calibrate(pipe, PROMPTS, batch_size=51, **settings)
    free = free_detectors(Setup.of(pipe, settings))
    always = {"stability", "stability-first", "stability-or-drift", "drift"}
    guided = {"combined", "guidance-first", "guidance-mean", "guidance-last", "information"}
    # a call that is given a picture has its detail from the beginning, and without captions all pictures have one mean
    few = type(pipe.scheduler).__name__ == "LCMScheduler"
    bare = not family_of(pipe).conditional
    always |= set() if few or bare or any("image" in key for key in settings) else {"early-detail"}
    assert {detector.name for detector in free} == (always if family.scale is None else always | guided)
    for detector in free:
        assert calibration.null(detector).shape == (68, 4)
    prompts = ["a red circle", "a blue star"]
    found = list(detect(pipe, prompts, seeds=[0, 1], calibration=calibration, fpr=0.5, **settings))
    plain = call(pipe, family)
    with guard(pipe, calibration, fpr=0.5) as observing:
        assert torch.equal(call(pipe, family), plain)
    for finding, verdict in zip(found, observing.verdicts, strict=True):
        assert verdict.score == pytest.approx(finding.verdict.score, rel=1e-3)
    rule = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
    with guard(pipe, calibration, policy="mitigate", fpr=0.5, mitigation=rule) as mitigating:
        corrected = call(pipe, family)
    assert all(verdict.corrected == (0, 1, 2, 3) for verdict in mitigating.verdicts)
    assert torch.isfinite(corrected).all()
    assert not torch.equal(corrected, plain)
    with guard(pipe, calibration, policy=Regenerate(retries=1), fpr=0.5, mitigation=rule) as again:
        call(pipe, family)
    for verdict in again.verdicts:
        made = {"regenerated"} if not verdict.clean and verdict.retried[0] > 0.5 else {"mitigated", "withheld"}
        assert verdict.action in ({"none"} if verdict.clean else made)


@pytest.mark.parametrize(
    "name",
    [
        *("sd-epsilon", "sd-v", "sdxl", "sd3", "flux true guidance", "flux distilled", "ddim", "qwen-image", "z-image"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("kontext", "lumina 2", "cogview 4", "hidream")),
    ],
)
def test_the_mean_of_a_map_detects_as_any_other_detector_does(name):
    family = CASES[name]
    pipe = family.make()
    detector = "curvature" if family.scale is None else "collapse"
    settings = family.call(pipe)
    calibration = calibrate(pipe, PROMPTS, detectors=[detector], batch_size=51, **settings)
    assert calibration.runs.signals.keys() == {detector}
    prompts = ["a red circle", "a blue star"]
    found = list(detect(pipe, prompts, seeds=[0, 1], calibration=calibration, detector=detector, fpr=0.5, **settings))
    plain = call(pipe, family)
    with guard(pipe, calibration, detector=detector, fpr=0.5) as observing:
        assert torch.equal(call(pipe, family), plain)
    for finding, verdict in zip(found, observing.verdicts, strict=True):
        assert verdict.score == pytest.approx(finding.verdict.score, rel=1e-3, abs=1e-4)
        assert verdict.score >= 0


@pytest.mark.parametrize("name", ["sd-epsilon", "sdxl", "sd3", "flux true guidance"])
def test_several_images_per_prompt_are_told_apart(name):
    family = CASES[name]
    pipe = family.make()
    arguments = family_of(pipe).arguments(["a red circle", "a blue star"], family.sampling)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    with watch(pipe) as seen:
        pipe(**arguments, num_images_per_prompt=2, generator=generators, output_type="latent")
    pairs = [("a red circle", 0), ("a red circle", 1), ("a blue star", 2), ("a blue star", 3)]
    for row, (prompt, seed) in enumerate(pairs):
        alone = next(generate(Setup(pipe, family.sampling), [prompt], [seed])).trajectory
        torch.testing.assert_close(seen.trajectory.norms["delta"][row], alone.norms["delta"][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd-v", "sd3", "flux true guidance", "z-image", "qwen-image"])
def test_half_precision_is_observed_and_steered(name, dtype):
    family = CASES[name]
    pipe = family.make().to(dtype)
    plain = call(pipe, family)
    with watch(pipe) as seen:
        assert torch.equal(call(pipe, family), plain)
    assert seen.trajectory.norms["delta"].dtype == torch.float32
    wanted = []

    def steer(step, solver):
        after = solver.after(step.guided.value)
        wanted.append(0.9 * after)
        return solver.landing(step.guided.value, after, wanted[-1])

    with watch(pipe, steer=steer, keep="all") as seen:
        call(pipe, family)
    reached = [seen.trajectory.steps[index].sample for index in range(1, 4)] + [seen.trajectory.latents]
    for expected, found in zip(wanted, reached, strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("name", ["sd-epsilon", "flux true guidance", "ddim"])
@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_compiled_networks_are_seen(name, how):
    family = CASES[name]
    pipe = family.make()
    part = "transformer" if hasattr(pipe, "transformer") else "unet"
    with watch(pipe) as seen:
        call(pipe, family)
    eager = seen.trajectory.norms["delta"]
    if how == "in place":
        getattr(pipe, part).compile(backend="eager")
    else:
        setattr(pipe, part, torch.compile(getattr(pipe, part), backend="eager"))
    plain = call(pipe, family)
    with watch(pipe) as seen:
        assert torch.equal(call(pipe, family), plain)
    torch.testing.assert_close(seen.trajectory.norms["delta"], eager, rtol=1e-3, atol=1e-3)
    # a guard watches every call anew: that must not compile the network anew
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            with watch(pipe) as seen:
                call(pipe, family)
        assert torch.equal(call(pipe, family), plain)
    assert seen.trajectory.complete


def test_offloading_and_slicing_are_seen_through():
    family = CASES["sd-epsilon"]
    pipe = family.make()
    with watch(pipe) as seen:
        call(pipe, family)
    eager = seen.trajectory.norms["delta"]
    pipe.vae.enable_slicing()
    pipe.enable_attention_slicing()
    pipe.enable_model_cpu_offload(device="cpu")
    plain = call(pipe, family)
    with watch(pipe) as seen:
        assert torch.equal(call(pipe, family), plain)
    torch.testing.assert_close(seen.trajectory.norms["delta"], eager, rtol=1e-3, atol=1e-3)


def test_a_model_that_clips_can_be_observed_but_not_steered():
    pipe = unconditional(DDIMPipeline)
    pipe.scheduler.register_to_config(clip_sample=True)
    calibration = calibrate(pipe, PROMPTS, batch_size=51, num_inference_steps=3)
    with guard(pipe, calibration, fpr=0.5) as guarding:
        images = pipe(batch_size=2, num_inference_steps=3, output_type="np").images
    assert len(guarding.verdicts) == len(images) == 2
    with pytest.raises(UsageError, match="DDIMScheduler with clip_sample=True"):
        guard(pipe, calibration, policy="mitigate", mitigation="stability-published", fpr=0.5)
    with pytest.raises(
        UsageError, match="none of the mitigations partial-captions, rephrasing, stability-published works"
    ):
        guard(pipe, calibration, policy="mitigate", fpr=0.5)
    assert np.isfinite(images).all()


DEFAULT_GUIDANCE = {
    "sd-epsilon": 7.5,
    "sdxl": 5.0,
    "sd3": 7.0,
    "flux distilled": 3.5,
    "ddim": 1.0,
    "ddpm": 1.0,
}


@pytest.mark.parametrize("name", DEFAULT_GUIDANCE)
def test_the_default_guidance_is_that_of_the_pipelines_own_call(name):
    pipe = CASES[name].make()
    setup = Setup.of(pipe, {})
    assert setup.sampling.guidance == DEFAULT_GUIDANCE[name]
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "guidance_scale" in parameters:
        assert setup.sampling.guidance == parameters["guidance_scale"].default
        assert Setup.of(pipe, {"guidance_scale": 1.25}).sampling.guidance == 1.25
    assert setup.sampling.steps == parameters["num_inference_steps"].default
    assert setup.sampling.height is setup.sampling.width is None
    assert setup.sampling.options == {}
    assert setup.guided == (name in ("sd-epsilon", "sdxl", "sd3"))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("dd", "flux 2"))])
def test_negative_prompts_are_repeated_for_every_prompt(name):
    family = CASES[name]
    pipe = family.make()
    settings = family.call(pipe)
    for written in ("a red bar", ["a red bar"], ["a red bar"] * 7):
        arguments = family_of(pipe).arguments(
            ["a red circle", "a blue star"], Setup.of(pipe, {**settings, "negative_prompt": written}).sampling
        )
        assert arguments["negative_prompt"] == ["a red bar", "a red bar"]


def test_skip_layer_guidance_of_sd3_changes_no_branch():
    family = CASES["sd3"]
    pipe = family.make()
    with watch(pipe, keep="all") as plain:
        call(pipe, family)
    with watch(pipe, keep=(0,)) as seen:
        call(pipe, family, skip_guidance_layers=[0], skip_layer_guidance_start=-1.0, skip_layer_guidance_stop=2.0)
    first, other = plain.trajectory.step(0), seen.trajectory.step(0)
    assert torch.equal(first.cond.value, other.cond.value)
    assert torch.equal(first.uncond.value, other.uncond.value)
    assert not torch.equal(first.guided.value, other.guided.value)
