"""Every pipeline that shares the denoiser of a guarded one is guarded, too, or stopped."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)

from cryptomnesia import UsageError, calibrate, detect, guard, watch
from cryptomnesia.guarding.gate import Gate
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.testing.miniatures import CALL, PROMPTS, SAMPLING, flux, stable_diffusion
from guarded_calls import call
from nulls import EVERYTHING, flagging

PLAIN = {"requires_safety_checker": False}
PICTURE = torch.zeros(1, 3, 16, 16)


@pytest.fixture
def blocking(pipe, calibration):
    """An attached guard that withholds every image."""
    with guard(pipe, flagging(calibration, EVERYTHING), policy="block") as guarding:
        yield guarding


def fresh(pipe, kind=DDIMScheduler):
    return kind.from_config(pipe.scheduler.config, clip_sample=False)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def from_pipe(pipe):
    return StableDiffusionPipeline.from_pipe(pipe, scheduler=fresh(pipe), **PLAIN)


def automatic(pipe):
    return AutoPipelineForText2Image.from_pipe(pipe, **PLAIN)


def same_parts(pipe):
    return StableDiffusionPipeline(**pipe.components, **PLAIN)


def same_denoiser(pipe):
    other = stable_diffusion()
    other.unet = pipe.unet
    return other


def copied_denoiser(pipe):
    other = stable_diffusion()
    other.unet = copy.deepcopy(pipe.unet)
    return other


class HomeMade:
    """A pipeline that has nothing to do with diffusers' classes."""

    def __init__(self, pipe):
        self.network, self.solver = pipe.unet, fresh(pipe)

    def __call__(self, prompt, **_):
        self.solver.set_timesteps(2)
        x = torch.zeros(1, 4, 8, 8)
        for t in self.solver.timesteps:
            x = self.solver.step(self.network(x, t, torch.zeros(1, 3, 32))[0], t, x).prev_sample
        return x


@pytest.mark.parametrize("make", [from_pipe, automatic, same_parts, same_denoiser, copied_denoiser])
def test_another_pipeline_is_stopped(blocking, make):
    call(blocking.pipe)
    other = quiet(make(blocking.pipe))
    with pytest.raises(UsageError, match=r"a StableDiffusionPipeline that is not guarded .*`guarding\.also") as refused:
        call(other)
    assert "\n" not in str(refused.value)
    # the verdicts of the call before are not taken for those of this one
    assert blocking.verdicts == ()
    blocking.detach()
    assert call(other).any()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (StableDiffusionImg2ImgPipeline, {"image": PICTURE, "strength": 0.7}),
        (StableDiffusionInpaintPipeline, {"image": PICTURE, "mask_image": torch.ones(1, 1, 16, 16)}),
    ],
)
def test_another_class_is_stopped(blocking, kind, more):
    other = quiet(kind(**blocking.pipe.components, **PLAIN))
    with pytest.raises(UsageError, match=f"a {kind.__name__} that is not guarded .* a guarded StableDiffusionPipeline"):
        other("a red circle", num_inference_steps=3, **more)
    with pytest.raises(UsageError, match="not guarded"):
        quiet(AutoPipelineForImage2Image.from_pipe(blocking.pipe, **PLAIN))("a", image=PICTURE, num_inference_steps=3)


def test_what_is_no_pipeline_of_diffusers_is_stopped(blocking):
    with pytest.raises(UsageError, match="a HomeMade that is not guarded"):
        HomeMade(blocking.pipe)("a red circle")
    with pytest.raises(UsageError, match="a guarded StableDiffusionPipeline was run past its guard; call the pipeline"):
        StableDiffusionPipeline.__call__(blocking.pipe, "a red circle", **CALL)


def test_a_pipeline_in_a_callback_is_stopped(blocking):
    other = same_denoiser(blocking.pipe)

    def run(pipe, index, t, values):
        call(other)
        return values

    with pytest.raises(UsageError, match="not guarded"):
        call(blocking.pipe, callback_on_step_end=run)
    assert not call(blocking.pipe).any()


@pytest.mark.parametrize(
    "make",
    [
        copy.copy,
        copy.deepcopy,
        lambda pipe: type(pipe).from_pipe(pipe, scheduler=fresh(pipe), **PLAIN),
        lambda pipe: type(pipe)(**pipe.components, **PLAIN),
    ],
)
def test_a_copy_is_guarded(blocking, make):
    pipe, own = blocking.pipe, stable_diffusion().tokenizer
    plain = call(stable_diffusion())
    other, uncalled = quiet(make(pipe)), make(pipe)
    assert not call(other).any()
    (verdict,) = blocking.verdicts
    assert (verdict.action, verdict.prompt) == ("withheld", "a red circle")
    # every thread may have a copy, so a copy has tokenizers of its own
    assert other.tokenizer is not pipe.tokenizer
    with pytest.raises(UsageError, match="steps is 4, calibrated 3"):
        call(other, num_inference_steps=4)
    assert blocking.verdicts == ()
    blocking.detach()
    for each in (pipe, other, quiet(uncalled)):
        assert type(each) is StableDiffusionPipeline
        np.testing.assert_array_equal(call(each), plain)
    if make is not copy.deepcopy:
        assert {id(each.tokenizer) for each in (pipe, other, uncalled)} == {id(own)}


def test_a_copy_is_judged_by_its_own_set_up(blocking):
    other = copy.copy(blocking.pipe)
    other.scheduler = fresh(other, EulerDiscreteScheduler)
    with pytest.raises(UsageError, match="scheduler is EulerDiscreteScheduler, calibrated DDIM"):
        call(other)
    other = copy.deepcopy(blocking.pipe)
    with torch.no_grad():
        next(other.unet.parameters()).mul_(1.5)
    with pytest.raises(UsageError, match=r"weights\.unet is"):
        call(other)


def test_a_pipeline_for_every_request(blocking):
    pipe = blocking.pipe
    call(pipe)
    with blocking.also(from_pipe(pipe)) as mine:
        assert not call(quiet(mine.pipe)).any()
        assert [verdict.action for verdict in mine.verdicts] == ["withheld"]
        call(mine.pipe, ["a blue star"] * 2, seeds=(0, 1))
    assert (len(mine.verdicts), len(blocking.verdicts)) == (2, 1)
    assert (mine.policy, mine.detector, mine.calibrations) == (
        blocking.policy,
        blocking.detector,
        blocking.calibrations,
    )
    with pytest.raises(UsageError, match="not guarded"):
        call(mine.pipe)
    with pytest.raises(UsageError, match="guarded already"):
        blocking.also(pipe).attach()
    other = quiet(StableDiffusionPAGPipeline(**pipe.components, pag_applied_layers=["mid"], **PLAIN))
    with pytest.raises(UsageError, match="unknown family"):
        blocking.also(other)
    with pytest.raises(UsageError, match=r"weights\."):
        blocking.also(flux())


def test_another_class_is_judged_by_its_own_calibration(pipe, calibration):
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "strength": 0.8, "image": PICTURE}
    other = quiet(StableDiffusionImg2ImgPipeline(**pipe.components, **PLAIN))
    own = calibrate(other, PROMPTS, batch_size=51, **settings)

    def verdicts(calibrations, **rule):
        with guard(pipe, calibrations, fpr=0.5, **rule) as guarding, guarding.also(other) as mine:
            other("a red circle", output_type="np", **settings)
            call(pipe)
        return mine.verdicts + guarding.verdicts

    # of a call that is given a picture, the first estimates have the detail of that picture
    found = verdicts([calibration, own])
    assert [verdict.detector for verdict in found] == ["combined", "early-detail"]
    assert all(math.isfinite(verdict.score) for verdict in found)
    named = verdicts([calibration, own], detector="stability")
    assert [verdict.detector for verdict in named] == ["stability", "stability"]
    with pytest.raises(UsageError, match="early-detail needs runs that begin from noise"):
        verdicts([calibration, own], detector="early-detail", unknown="allow")
    with guard(other, [calibration, own], fpr=0.5) as guarding:
        other("a red circle", output_type="np", **settings)
    assert guarding.verdicts[0].p_value <= 1
    unknown, known = verdicts(calibration, unknown="block")
    assert (unknown.action, known.action) == ("withheld", "none")
    differs = "pipeline is StableDiffusionImg2ImgPipeline, calibrated StableDiffusionPipeline"
    assert differs in unknown.reason
    for refused in (lambda: verdicts(calibration), lambda: guard(other, calibration, fpr=0.5)):
        with pytest.raises(UsageError, match=f"made with another set-up: .*{differs}"):
            refused()


def test_what_makes_no_image_goes_on(pipe, calibration):
    found = list(detect(pipe, "a red circle", calibration=calibration, fpr=0.5, localizer="collapse", **CALL))
    with guard(pipe, calibration, fpr=0.5) as guarding, watch(pipe, keep=(-1,)) as seen:
        call(pipe)
        step = seen.trajectory.step(-1)
        again = family_of(pipe).denoiser()(step.cond.x, step.level, step.cond_inputs)
        torch.testing.assert_close(again.value, step.cond.value, rtol=1e-4, atol=1e-5)
        assert pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 3, 32))[0].isfinite().all()
        # a pipeline around other networks
        assert call(stable_diffusion()).any()
        assert len(guarding.verdicts) == 1
        inside = list(detect(pipe, "a red circle", calibration=calibration, fpr=0.5, localizer="collapse", **CALL))
    assert inside[0].verdict == found[0].verdict
    assert SAMPLING.steps == len(seen.trajectory.timesteps)


def test_the_hook_leaves_with_the_guard(pipe, calibration):
    with guard(pipe, calibration, fpr=0.5) as first, first.also(same_parts(pipe)):
        assert len(pipe.unet._forward_pre_hooks) == 2
        first.detach()
        assert len(pipe.unet._forward_pre_hooks) == 1
        with pytest.raises(UsageError, match="not guarded"):
            call(pipe)
        loaded = pickle.loads(pickle.dumps(pipe.unet))
        copied = copy.deepcopy(pipe.unet)
    assert not pipe.unet._forward_pre_hooks
    assert call(pipe).any()
    for network in (loaded, copied):
        pipe.unet = network
        assert call(pipe).any()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_network_that_is_compiled_in_place(pipe, calibration, when):
    other = quiet(same_parts(pipe))
    if when == "before":
        pipe.unet.compile(backend="eager")
        inner = vars(pipe.unet)["_compiled_call_impl"]
    with guard(pipe, calibration, fpr=0.5) as guarding:
        if when == "after":
            pipe.unet.compile(backend="eager", fullgraph=True)
            inner = vars(pipe.unet)["_compiled_call_impl"]
        call(pipe)
        assert len(guarding.verdicts) == 1
        with pytest.raises(UsageError, match="not guarded"):
            call(other)
    assert vars(pipe.unet)["_compiled_call_impl"] is inner
    assert call(other).any()


def test_a_network_in_the_wrapper_of_a_compiler(pipe, calibration):
    bare = quiet(same_parts(pipe))
    pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    wrapped = quiet(same_parts(pipe))
    with guard(pipe, calibration, fpr=0.5) as guarding:
        call(pipe)
        assert len(guarding.verdicts) == 1
        for other in (bare, wrapped):
            with pytest.raises(UsageError, match="not guarded"):
                call(other)
    assert call(bare).any()


class Small(torch.nn.Module):
    """A network that is compiled in a moment."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


class Runner:
    """A pipeline around one network."""

    def __init__(self, network):
        self.network, self.scheduler = network, DDIMScheduler()

    def __call__(self):
        return self.network(torch.ones(1, 2))


def test_a_network_that_another_pipeline_compiles():
    network, refused = Small(), []
    gate = Gate(network, "Pipeline", lambda: refused.append(1))
    other = Runner(torch.compile(network, backend="eager"))
    for _ in range(2):
        with pytest.raises(UsageError, match="a Runner that is not guarded"):
            other()
    assert refused == [1, 1]
    gate.open()
    assert other().isfinite().all()


def test_a_network_with_hooks_of_accelerate(pipe, calibration):
    """Offloading replaces `forward`, and leaves what torch calls before it."""
    with guard(pipe, calibration, fpr=0.5) as guarding:
        add_hook_to_module(pipe.unet, ModelHook())
        call(pipe)
        assert len(guarding.verdicts) == 1
        with pytest.raises(UsageError, match="not guarded"):
            call(quiet(same_parts(pipe)))
