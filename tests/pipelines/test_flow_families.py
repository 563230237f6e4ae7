"""What is particular about the families of transformers that are trained on rectified flow."""

import inspect
from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler

from cryptomnesia import Drift, Regenerate, StabilityRule, UsageError, calibrate, guard, watch
from cryptomnesia.detectors import GuidanceMagnitude
from cryptomnesia.localizers import CurvatureDifference, DiagonalEstimator, Watched
from cryptomnesia.localizers.base import over_channels
from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.inputs import GRID, Listed, Stacked, input_rows, plain, together
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import PROMPTS as REFERENCES
from cryptomnesia.testing.miniatures import TRUE_GUIDANCE, flux, packed, stable_diffusion_3, unpacked
from cryptomnesia.tracing.generation import generate
from family_cases import KONTEXT, PICTURE, SHORT, SMALL

FLUX2 = {**SHORT, **packed.LAYERS}
PROMPTS = ["a red circle", "a small striped blue star"]


def generators(count=2):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def seen_in(pipe, settings, *, keep="all", prompts=PROMPTS, steps=4, **more):
    with watch(pipe, keep=keep) as seen:
        pipe(
            prompt=list(prompts),
            num_inference_steps=steps,
            generator=generators(len(prompts)),
            output_type="latent",
            **{**settings, **more},
        )
    return seen.trajectory


GUIDED = {
    "flux: negative prompt alone": (flux, {**SMALL, "negative_prompt": ["a"] * 2}, False),
    "flux: true guidance alone": (flux, {**SMALL, "true_cfg_scale": 3.0}, False),
    "flux: both": (flux, {**SMALL, "true_cfg_scale": 3.0, "negative_prompt": ["a"] * 2}, True),
    "flux: an empty negative prompt": (flux, {**SMALL, "true_cfg_scale": 3.0, "negative_prompt": [""] * 2}, True),
    "kontext": (packed.flux_kontext, {**KONTEXT, "true_cfg_scale": 3.0, "negative_prompt": ["a"] * 2}, True),
    "flux 2": (packed.flux2, FLUX2, False),
    "klein": (packed.flux2_klein, FLUX2, True),
    "klein at 1": (packed.flux2_klein, {**FLUX2, "guidance_scale": 1.0}, False),
    "distilled klein": (lambda: packed.flux2_klein(distilled=True), FLUX2, False),
    "qwen: no negative prompt": (packed.qwen_image, SHORT, False),
    "qwen: negative prompt": (packed.qwen_image, {**SHORT, "negative_prompt": ["a"] * 2}, True),
    "qwen at 1": (packed.qwen_image, {**SHORT, "negative_prompt": ["a"] * 2, "true_cfg_scale": 1.0}, False),
    "z-image": (unpacked.z_image, SMALL, True),
    "z-image below 1": (unpacked.z_image, {**SMALL, "guidance_scale": 0.5}, True),
    "z-image at 0": (unpacked.z_image, {**SMALL, "guidance_scale": 0.0}, False),
    "z-image cut short": (unpacked.z_image, {**SMALL, "cfg_truncation": 0.3}, False),
    "lumina": (unpacked.lumina2, SHORT, True),
    "lumina at 1": (unpacked.lumina2, {**SHORT, "guidance_scale": 1.0}, False),
    "lumina cut short": (unpacked.lumina2, {**SHORT, "cfg_trunc_ratio": 0.5}, False),
    "chroma": (packed.chroma, SHORT, True),
    "chroma at 1": (packed.chroma, {**SHORT, "guidance_scale": 1.0}, False),
    "aura flow": (unpacked.aura_flow, SMALL, True),
    "aura flow at 1": (unpacked.aura_flow, {**SMALL, "guidance_scale": 1.0}, False),
    "cogview": (unpacked.cogview4, {}, True),
    "cogview at 1": (unpacked.cogview4, {"guidance_scale": 1.0}, False),
    "hidream": (unpacked.hidream, SHORT, True),
    "hidream at 1": (unpacked.hidream, {**SHORT, "guidance_scale": 1.0}, False),
    "sd3 image to image": (unpacked.sd3_image_to_image, {**SHORT, "image": [PICTURE] * 2}, True),
}


@pytest.mark.filterwarnings("ignore:Guidance scale .* is ignored")
@pytest.mark.parametrize("name", GUIDED)
def test_a_setup_is_guided_if_every_evaluation_of_its_runs_has_both_branches(name):
    make, settings, guided = GUIDED[name]
    pipe = make()
    assert Setup.of(pipe, settings).guided == guided
    found = seen_in(pipe, settings).steps.values()
    assert all(step.uncond is not None for step in found) == guided


CUT = {
    "lumina": (unpacked.lumina2, {**SHORT, "cfg_trunc_ratio": 0.5}, 2),
    # the timesteps are 1000, 826, 613 and 345
    "z-image": (unpacked.z_image, {**SMALL, "guidance_scale": 2.0, "cfg_truncation": 0.3}, 2),
}


@pytest.mark.parametrize("name", CUT)
def test_guidance_that_is_cut_short_leaves_the_rest_of_the_run_one_branch(name):
    make, settings, both = CUT[name]
    pipe = make()
    run = seen_in(pipe, settings)
    assert [step.uncond is not None for step in run.steps.values()] == [True] * both + [False] * (4 - both)
    assert run.norms["guidance"].isnan().tolist() == [[False] * both + [True] * (4 - both)] * 2
    for step in list(run.steps.values())[both:]:
        assert torch.equal(step.guided.value, step.cond.value)
    setup = Setup.of(pipe, settings)
    assert setup.accepts(Drift())
    with pytest.raises(UsageError, match="without cutting the guidance short"):
        setup.check([GuidanceMagnitude()])


UNGUIDED = {
    "klein": (packed.flux2_klein, FLUX2, {"guidance_scale": 1.0}),
    "qwen": (packed.qwen_image, {**SHORT, "negative_prompt": ["a"] * 2}, {"negative_prompt": None}),
    "z-image": (unpacked.z_image, SMALL, {"guidance_scale": 0.0}),
    "lumina": (unpacked.lumina2, SHORT, {"guidance_scale": 1.0}),
    "chroma": (packed.chroma, SHORT, {"guidance_scale": 1.0}),
    "aura flow": (unpacked.aura_flow, SMALL, {"guidance_scale": 1.0}),
    "cogview": (unpacked.cogview4, {}, {"guidance_scale": 1.0}),
    "hidream": (unpacked.hidream, SHORT, {"guidance_scale": 1.0}),
}


@pytest.mark.parametrize("name", UNGUIDED)
def test_the_conditional_branch_is_the_one_that_reads_the_caption(name):
    make, settings, without = UNGUIDED[name]
    pipe = make()
    guided = seen_in(pipe, settings, keep=(0,)).step(0)
    alone = seen_in(pipe, settings, keep=(0,), **without).step(0)
    assert guided.uncond is not None
    assert alone.uncond is None
    torch.testing.assert_close(guided.cond.value, alone.cond.value, rtol=1e-4, atol=1e-5)
    assert (guided.uncond.value - alone.cond.value).abs().max() > 1e-3


EVERY = {
    "flux": (flux, SMALL),
    "kontext": (packed.flux_kontext, KONTEXT),
    "klein": (packed.flux2_klein, FLUX2),
    "qwen": (packed.qwen_image, {**SHORT, "negative_prompt": ["a"] * 2}),
    "z-image": (unpacked.z_image, SMALL),
    "lumina": (unpacked.lumina2, SHORT),
    "chroma": (packed.chroma, SHORT),
    "aura flow": (unpacked.aura_flow, SMALL),
    "cogview": (unpacked.cogview4, {}),
    "hidream": (unpacked.hidream, SHORT),
    "sd3 inpainting": (unpacked.sd3_inpainting, {**SHORT, "image": [PICTURE] * 2, "mask_image": PICTURE.convert("L")}),
}


@pytest.mark.parametrize("name", EVERY)
def test_the_estimate_of_the_picture_is_the_solvers_own(name):
    make, settings = EVERY[name]
    pipe = make()
    own = []
    step = pipe.scheduler.step

    def recorded(value, t, sample, *rest, **named):
        taken = step(value, t, sample, *rest, **named)
        sigma = pipe.scheduler.sigmas[pipe.scheduler.step_index - 1]
        own.append((sample - sigma * value, sigma.item()))
        return taken

    pipe.scheduler.step = recorded
    run = seen_in(pipe, settings)
    assert len(own) == len(run.steps) >= 2
    for found, (x0, sigma) in zip(run.steps.values(), own, strict=True):
        torch.testing.assert_close(found.guided.x0, x0, rtol=1e-5, atol=1e-5)
        assert found.cond.sigma == pytest.approx(sigma)
        assert found.cond.alpha == pytest.approx(1 - sigma)
        torch.testing.assert_close(found.sample, found.cond.x)


@pytest.mark.parametrize(
    ("make", "settings"), [(unpacked.aura_flow, SMALL), (stable_diffusion_3, SHORT)], ids=["aura flow", "sd3"]
)
def test_heun_evaluates_between_two_noise_levels(make, settings):
    pipe = make()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    run = seen_in(pipe, settings, steps=3)
    sigmas = pipe.scheduler.sigmas.tolist()
    assert run.complete
    assert [step.cond.sigma for step in run.steps.values()] == pytest.approx(sigmas[:-1])
    # the first evaluation after a whole step sees what that step led to, so both see the same noise level
    assert sigmas[1] == sigmas[2]
    view = family_of(pipe).denoiser()
    for step in run.steps.values():
        assert step.t == pytest.approx(1000 * step.cond.sigma)
        again = view(step.cond.x, step.level, step.cond_inputs).value
        torch.testing.assert_close(again, step.cond.value, rtol=1e-3, atol=1e-5)


PACKED = {
    "flux": (flux, {**SHORT, "height": 16, "width": 24}),
    "kontext": (packed.flux_kontext, {**KONTEXT, "height": 16, "width": 24, "max_area": 384}),
    "klein": (packed.flux2_klein, {**FLUX2, "height": 16, "width": 24}),
    "edited": (packed.flux2, {**FLUX2, "height": 16, "width": 24, "image": PICTURE.resize((64, 80))}),
    "qwen": (packed.qwen_image, {**SHORT, "height": 16, "width": 24}),
    "chroma": (packed.chroma, {**SHORT, "height": 16, "width": 24}),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_latents_lie_where_the_pipeline_unpacks_them(name):
    make, settings = PACKED[name]
    pipe = make()
    run = seen_in(pipe, settings, keep=(0,), prompts=PROMPTS[:1], steps=2)
    inputs = run.step(0).cond_inputs
    height, width = inputs[GRID].value
    assert (height, width) == (4, 6)
    values = torch.randn(run.latents.shape, generator=torch.Generator().manual_seed(0))
    if hasattr(pipe, "_unpack_latents_with_ids"):
        ids = inputs["img_ids"][:, : height * width]
        sizes = () if isinstance(pipe, packed.Flux2Pipeline) else (height, width)
        unpacked = pipe._unpatchify_latents(pipe._unpack_latents_with_ids(values, ids, *sizes))
    else:
        unpacked = pipe._unpack_latents(values, 16, 24, pipe.vae_scale_factor)
        unpacked = unpacked[:, :, 0] if unpacked.dim() == 5 else unpacked
    torch.testing.assert_close(over_channels(values, inputs), unpacked.sum(dim=1))


TINY = {**SHORT, "height": 8, "width": 12}
MAPPED = {
    "qwen": (packed.qwen_image, {**TINY, "negative_prompt": "a"}),
    "z-image": (unpacked.z_image, TINY),
    "kontext": (
        packed.flux_kontext,
        {**KONTEXT, **TINY, "max_area": 96, **TRUE_GUIDANCE},
    ),
    "hidream": (unpacked.hidream, SHORT),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("kontext", "hidream") else []) for name in MAPPED]
)
def test_maps_are_made_of_the_exact_diagonal_of_the_jacobian(name):
    make, settings = MAPPED[name]
    pipe = make()
    setup = Setup.of(pipe, {**settings, "num_inference_steps": 3})
    (batch,) = generate(setup, PROMPTS, [0, 1], keep="all")
    step = batch.trajectory.step(-2)
    family = family_of(pipe)
    localizer = CurvatureDifference(estimator=DiagonalEstimator(engine="exact"))
    found = localizer.estimate(Watched(batch.trajectory, family.denoiser())).value
    for row in (0, 1):
        cond, uncond = (input_rows(inputs, [row]) for inputs in (step.cond_inputs, step.uncond_inputs))
        # ε = x + α·v
        difference = own_diagonal(pipe, step, cond, row) - own_diagonal(pipe, step, uncond, row)
        expected = over_channels(difference, cond)[0] * step.cond.alpha / step.cond.sigma
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-5)


def own_diagonal(pipe, step, inputs, row):
    """The diagonal of ∂v/∂x for one image, from the pipeline's network and autograd alone."""
    x = step.cond.x[row : row + 1]
    given, share = plain(inputs), step.level.t / 1000

    def value(flat):
        tokens = flat.view_as(x)
        if isinstance(pipe, unpacked.ZImagePipeline):
            times = torch.tensor([1 - share])
            return -pipe.transformer([tokens[0, :, None]], times, **given, return_dict=False)[0][0].flatten()
        if isinstance(pipe, unpacked.HiDreamImagePipeline):
            times = torch.tensor([1000 * share])
            return -pipe.transformer(tokens, timesteps=times, **given, return_dict=False)[0].flatten()
        if "_context" in inputs:
            tokens = torch.cat([tokens, inputs["_context"]], dim=1)
        out = pipe.transformer(tokens, timestep=torch.tensor([share]), **given, return_dict=False)[0]
        return out[:, : x.shape[1]].flatten()

    return torch.autograd.functional.jacobian(value, x.flatten()).diagonal().view_as(x)


@pytest.mark.parametrize("name", ["kontext", "klein", "qwen", "z-image", "chroma", "aura flow", "hidream"])
def test_an_image_does_not_depend_on_its_batch(name):
    make, settings = EVERY[name]
    settings = {name: value[0] if name == "negative_prompt" else value for name, value in settings.items()}
    pipe = make()
    setup = Setup.of(pipe, {**settings, "num_inference_steps": 2})
    captions = [PROMPTS[0], f"{PROMPTS[1]} on the white heart"]
    (both,) = generate(setup, captions, [0, 1])
    several = {**settings, "prompt": list(captions), "num_images_per_prompt": 2, "num_inference_steps": 2}
    with watch(pipe) as seen:
        pipe(**repeated(pipe, several), generator=[*generators(1) * 2, *generators(2)[1:] * 2], output_type="latent")
    for row, (caption, seed) in enumerate(zip(captions, (0, 1), strict=True)):
        (alone,) = generate(setup, [caption], [seed])
        expected = alone.trajectory.norms["delta"][0]
        torch.testing.assert_close(both.trajectory.norms["delta"][row], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.images[row], alone.images[0], rtol=1e-4, atol=1e-4)
    assert seen.trajectory.norms["delta"].shape == (4, 2)


def repeated(pipe, arguments):
    """The arguments with a negative prompt for every prompt."""
    return {**arguments, **({"negative_prompt": ["a", "a"]} if "negative_prompt" in arguments else {})}


def test_pictures_are_given_once_for_all_prompts_or_once_per_prompt():
    pipe = unpacked.sd3_image_to_image()
    once = Setup.of(pipe, {**SHORT, "image": PICTURE})
    each = Setup.of(pipe, {**SHORT, "image": [PICTURE, PICTURE.copy()]})
    assert once.sampling.options["image"] is each.sampling.options["image"] is PICTURE
    assert once.fingerprint == each.fingerprint
    assert once.family.arguments(PROMPTS, once.sampling)["image"] == [PICTURE, PICTURE]
    pixels = torch.rand(1, 3, 16, 16)
    tensor = Setup.of(pipe, {**SHORT, "image": pixels.repeat(2, 1, 1, 1)})
    assert torch.equal(tensor.sampling.options["image"], pixels[0])
    assert torch.equal(tensor.family.arguments(PROMPTS, tensor.sampling)["image"], pixels.repeat(2, 1, 1, 1))
    other = Setup.of(pipe, {**SHORT, "image": [PICTURE, PICTURE.rotate(90)]})
    assert len(other.family.arguments(PROMPTS, other.sampling)["image"]) == 2
    # the steps that are taken depend on the strength
    assert once.evaluations is None
    assert seen_in(pipe, {**SHORT, "image": [PICTURE] * 2, "strength": 0.5}).norms["delta"].shape == (2, 2)


@pytest.mark.parametrize("make", [unpacked.sd3_image_to_image, packed.flux_inpainting])
def test_a_scheduler_that_cannot_add_noise_to_the_picture_is_refused(make):
    pipe = make()
    pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(UsageError, match="adds noise to a picture, which DPMSolverMultistepScheduler cannot"):
        family_of(pipe)


@pytest.mark.parametrize("make", [unpacked.z_image, unpacked.cogview4, unpacked.hidream])
def test_a_scheduler_whose_timesteps_the_pipeline_cannot_set_is_refused(make):
    pipe = make()
    pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(UsageError, match="cannot set the timesteps of a DPMSolverMultistepScheduler; use FlowMatchEul"):
        family_of(pipe)


def test_the_size_of_a_picture_to_edit_takes_the_place_of_the_models():
    pipe = packed.flux2()
    large = PICTURE.resize((64, 64))
    assert Setup.of(pipe, {**FLUX2, "height": 16, "width": 16}).sampling.height is None
    sampling = Setup.of(pipe, {**FLUX2, "height": 16, "width": 16, "image": large}).sampling
    assert (sampling.height, sampling.width) == (16, 16)
    assert Setup.of(pipe, {**FLUX2, "image": large}).sampling.height is None


DEFAULTS = {
    "kontext": (packed.flux_kontext, 3.5, (16, 16)),
    "flux 2": (packed.flux2, 4.0, (16, 16)),
    "klein": (packed.flux2_klein, 4.0, (16, 16)),
    "qwen": (packed.qwen_image, 4.0, (16, 16)),
    "z-image": (unpacked.z_image, 5.0, (1024, 1024)),
    "lumina": (unpacked.lumina2, 4.0, (64, 64)),
    "chroma": (packed.chroma, 5.0, (16, 16)),
    "aura flow": (unpacked.aura_flow, 3.5, (1024, 1024)),
    "cogview": (unpacked.cogview4, 5.0, (16, 16)),
    "hidream": (unpacked.hidream, 5.0, (16, 16)),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_those_of_the_pipelines_own_call(name):
    make, guidance, size = DEFAULTS[name]
    pipe = make()
    family, setup = family_of(pipe), Setup.of(pipe, {})
    defaults = defaults_of(pipe)
    assert setup.sampling.guidance == guidance == defaults[family.guidance_name]
    assert family.native() == size
    assert setup.sampling.options == {}
    assert setup.sampling.height is setup.sampling.width is None
    fixed = Setup.of(pipe, {"height": size[0], "width": size[1], family.guidance_name: 1.25})
    assert fixed.sampling == replace(setup.sampling, guidance=1.25)
    arguments = family.arguments(PROMPTS, fixed.sampling)
    assert arguments[family.guidance_name] == 1.25
    assert arguments.keys() <= inspect.signature(type(pipe).__call__).parameters.keys()


def test_a_call_of_auraflow_with_no_size_has_that_of_the_network():
    pipe = unpacked.aura_flow()
    sampling = family_of(pipe).sampling({**SHORT, "height": None, "width": None}, defaults_of(pipe))
    assert (sampling.height, sampling.width) == (16, 16)
    assert seen_in(pipe, {**SHORT, "height": None, "width": None}, steps=1).latents.shape == (2, 4, 8, 8)


def test_qwen_image_is_guided_by_its_true_guidance_alone():
    pipe = packed.qwen_image()
    with pytest.raises(UsageError, match=r"guidance_scale=3\.0, which a QwenImagePipeline ignores"):
        Setup.of(pipe, {"guidance_scale": 3.0})


def test_a_caption_that_a_pipeline_changes_in_place_is_put_into_its_template_once():
    pipe = unpacked.z_image()
    calibration = calibrate(pipe, REFERENCES, batch_size=51, num_inference_steps=3, **SMALL)
    rule = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
    prompts = list(PROMPTS)
    texts = []
    encode = pipe.tokenizer.apply_chat_template

    def recorded(messages, **named):
        texts.extend(message["content"] for message in messages)
        return encode(messages, **named)

    pipe.tokenizer.apply_chat_template = recorded
    settings = {"policy": Regenerate(retries=1), "detector": "drift", "fpr": 0.9, "mitigation": rule}
    with guard(pipe, calibration, **settings) as guarding:
        pipe(prompt=prompts, num_inference_steps=3, generator=generators(), output_type="latent", **SMALL)
    assert all(verdict.retried for verdict in guarding.verdicts)
    assert len(texts) > 4
    assert set(texts) <= {*PROMPTS, ""}
    assert prompts == PROMPTS


def test_conditioning_in_lists_and_in_second_dimensions_is_told_apart_by_image():
    values = torch.arange(24.0).view(3, 4, 2)
    stacked = input_rows({"layers": Stacked(values)}, [2, 0])
    assert torch.equal(plain(stacked)["layers"], values[:, [2, 0]])
    assert torch.equal(plain(together(stacked, stacked))["layers"], values[:, [2, 0, 2, 0]])
    assert together(Stacked(values), Stacked(values[..., :1])) is None
    captions = Listed((torch.zeros(1, 2), torch.ones(5, 2)))
    assert [len(item) for item in plain(together({"c": captions}, {"c": captions}))["c"]] == [1, 5, 1, 5]
