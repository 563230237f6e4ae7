"""What every model family promises, each on a random miniature."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline

from cryptomnesia import Calibration, Sampling, StabilityRule, examine, generate, guard, watch
from cryptomnesia.detectors import DETECTORS, SIGNALS
from cryptomnesia.pipelines.families import FAMILIES, adapter_for
from cryptomnesia.testing.miniatures import (
    PROMPTS,
    TRUE_GUIDANCE,
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)


@dataclass(frozen=True)
class Family:
    """A miniature, the settings of its calls, and how much it is guided by (None: not at all)."""

    make: Any
    sampling: Sampling
    scale: float | None


CASES = {
    "sd-epsilon": Family(stable_diffusion, Sampling(4, 2.0), 2.0),
    "sd-v": Family(lambda: stable_diffusion("v_prediction"), Sampling(4, 2.0), 2.0),
    "sd unguided": Family(stable_diffusion, Sampling(4, 1.0), None),
    "sdxl": Family(stable_diffusion_xl, Sampling(4, 2.0), 2.0),
    "sd3": Family(stable_diffusion_3, Sampling(4, 2.0), 2.0),
    "sd3 unguided": Family(stable_diffusion_3, Sampling(4, 1.0), None),
    "flux distilled": Family(flux, Sampling(4, 3.5, 16, 16), None),
    "flux true guidance": Family(flux, Sampling(4, 1.0, 16, 16, options=TRUE_GUIDANCE), 2.0),
    "ddim": Family(unconditional, Sampling(4, 1.0), None),
    "ddpm": Family(lambda: unconditional(DDPMPipeline), Sampling(4, 1.0), None),
}


@pytest.fixture(params=CASES)
def family(request):
    return CASES[request.param]


def call(pipe: Any, family: Family, seeds: tuple[int, ...] = (0, 1), **more: Any) -> Any:
    arguments = adapter_for(pipe).arguments(["a red circle", "a blue star"][: len(seeds)], family.sampling)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(**arguments, generator=generators, **{"output_type": "pt", **more}).images


def test_every_family_is_tested():
    assert {type(case.make()).__name__ for case in CASES.values()} == set(FAMILIES)


def test_observing_leaves_the_image_bit_identical(family):
    pipe = family.make()
    plain = call(pipe, family)
    with watch(pipe, keep="all") as seen:
        watched = call(pipe, family)
    assert torch.equal(watched, plain)
    assert seen.trajectory.complete
    assert seen.trajectory.norms.delta.shape == (2, 4)
    assert torch.equal(call(pipe, family), plain)


def test_the_branches_recombine_and_agree_with_the_differentiable_view(family):
    pipe = family.make()
    with watch(pipe, keep="all") as seen:
        call(pipe, family)
    view = adapter_for(pipe).denoiser()
    for step in seen.trajectory.steps.values():
        assert (step.uncond is None) == (family.scale is None)
        guided = step.cond.value
        if step.uncond is not None:
            guided = step.uncond.value + family.scale * (step.cond.value - step.uncond.value)
            again = view(step.uncond.x, step.t, step.uncond_inputs).value
            torch.testing.assert_close(again, step.uncond.value, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(step.guided.value, guided, rtol=1e-4, atol=1e-5)
        again = view(step.cond.x, step.t, step.cond_inputs).value
        torch.testing.assert_close(again, step.cond.value, rtol=1e-3, atol=1e-4)
        x = step.cond
        torch.testing.assert_close(x.alpha * x.x0 + x.sigma * x.epsilon, x.x, rtol=1e-3, atol=1e-4)
    one = seen.trajectory.rows([1]).step(-1)
    torch.testing.assert_close(view(one.cond.x, one.t, one.cond_inputs).value, one.cond.value, rtol=1e-3, atol=1e-4)


def test_the_whole_chain_from_calibration_to_guard(family):
    pipe = family.make()
    calibration = Calibration.fit(pipe, PROMPTS, family.sampling, batch_size=51)
    guided = family.scale is not None
    assert set(calibration.null) == (DETECTORS.keys() - SIGNALS.keys() if guided else {"stability", "drift"})
    found = list(examine(pipe, ["a red circle", "a blue star"], [0, 1], family.sampling, calibration, rate=0.5))
    plain = call(pipe, family)
    with guard(pipe, calibration, rate=0.5) as observing:
        assert torch.equal(call(pipe, family), plain)
    for finding, verdict in zip(found, observing.verdicts, strict=True):
        assert verdict.score == pytest.approx(finding.score, rel=1e-3)
    always = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
    with guard(pipe, calibration, policy="mitigate", rate=0.5, rule=always) as mitigating:
        corrected = call(pipe, family)
    assert all(verdict.corrected == (0, 1, 2, 3) for verdict in mitigating.verdicts)
    assert torch.isfinite(corrected).all()
    assert not torch.equal(corrected, plain)
    with guard(pipe, calibration, policy="regenerate", rate=0.5, retries=1, rule=always) as again:
        call(pipe, family)
    for verdict in again.verdicts:
        made = {"regenerated"} if not verdict.clean and verdict.retried[0] > 0.5 else {"mitigated", "withheld"}
        assert verdict.action in ({"none"} if verdict.clean else made)


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v", "sdxl", "sd3", "flux true guidance", "flux distilled", "ddim"])
def test_the_mean_of_a_map_detects_as_any_other_detector_does(name):
    family = CASES[name]
    pipe = family.make()
    detector = "curvature" if family.scale is None else "collapse"
    calibration = Calibration.fit(pipe, PROMPTS, family.sampling, detectors=[detector], batch_size=51)
    assert detector in calibration.null
    prompts = ["a red circle", "a blue star"]
    found = list(examine(pipe, prompts, [0, 1], family.sampling, calibration, detector=detector, rate=0.5))
    plain = call(pipe, family)
    with guard(pipe, calibration, detector=detector, rate=0.5) as observing:
        assert torch.equal(call(pipe, family), plain)
    for finding, verdict in zip(found, observing.verdicts, strict=True):
        assert verdict.score == pytest.approx(finding.score, rel=1e-3, abs=1e-4)
        assert verdict.score >= 0


@pytest.mark.parametrize("name", ["sd-epsilon", "sdxl", "sd3", "flux true guidance"])
def test_several_images_per_prompt_are_told_apart(name):
    family = CASES[name]
    pipe = family.make()
    arguments = adapter_for(pipe).arguments(["a red circle", "a blue star"], family.sampling)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    with watch(pipe) as seen:
        pipe(**arguments, num_images_per_prompt=2, generator=generators, output_type="latent")
    pairs = [("a red circle", 0), ("a red circle", 1), ("a blue star", 2), ("a blue star", 3)]
    for row, (prompt, seed) in enumerate(pairs):
        alone = next(generate(pipe, [prompt], [seed], family.sampling)).trajectory
        torch.testing.assert_close(seen.trajectory.norms.delta[row], alone.norms.delta[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd-v", "sd3", "flux true guidance"])
def test_half_precision_is_observed_and_steered(name, dtype):
    family = CASES[name]
    pipe = family.make().to(dtype)
    plain = call(pipe, family)
    with watch(pipe) as seen:
        assert torch.equal(call(pipe, family), plain)
    assert seen.trajectory.norms.delta.dtype == torch.float32
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
    eager = seen.trajectory.norms.delta
    if how == "in place":
        getattr(pipe, part).compile(backend="eager")
    else:
        setattr(pipe, part, torch.compile(getattr(pipe, part), backend="eager"))
    plain = call(pipe, family)
    with watch(pipe) as seen:
        assert torch.equal(call(pipe, family), plain)
    torch.testing.assert_close(seen.trajectory.norms.delta, eager, rtol=1e-3, atol=1e-3)
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
    eager = seen.trajectory.norms.delta
    pipe.vae.enable_slicing()
    pipe.enable_attention_slicing()
    pipe.enable_model_cpu_offload(device="cpu")
    plain = call(pipe, family)
    with watch(pipe) as seen:
        assert torch.equal(call(pipe, family), plain)
    torch.testing.assert_close(seen.trajectory.norms.delta, eager, rtol=1e-3, atol=1e-3)


def test_a_model_that_clips_can_be_observed_but_not_steered():
    pipe = unconditional(DDIMPipeline)
    pipe.scheduler.register_to_config(clip_sample=True)
    calibration = Calibration.fit(pipe, PROMPTS, Sampling(3, 1.0), batch_size=51)
    with guard(pipe, calibration, rate=0.5) as guarding:
        images = pipe(batch_size=2, num_inference_steps=3, output_type="np").images
    assert len(guarding.verdicts) == len(images) == 2
    with pytest.raises(Exception, match="DDIMScheduler with clip_sample=True"):
        guard(pipe, calibration, policy="mitigate", rate=0.5).__enter__()
    assert np.isfinite(images).all()
