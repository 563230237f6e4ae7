"""Families against loops and derivatives of their own, and what is refused."""

import json
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from torch.autograd.functional import jacobian

from cryptomnesia import Sampling, UsageError, localize, watch
from cryptomnesia.localizers import CurvatureDifference, DiagonalEstimator, Watched
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import entries
from cryptomnesia.testing import check_family, run_checks
from cryptomnesia.testing.miniatures import pictures
from cryptomnesia.tracing.generation import generate
from family_cases import CASES, MORE

PROMPTS = ["a red circle", "a blue star"]


def call(setup: Setup, prompts=PROMPTS, seeds=(0, 1), **more: Any) -> Any:
    arguments = {**setup.family.arguments(prompts, setup.sampling), **more}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return setup.pipe(**arguments, generator=generators, output_type="latent").images


def observed(setup: Setup, **more: Any) -> Any:
    with watch(setup.pipe, keep="all") as seen:
        call(setup, **more)
    return seen.trajectory


def clip(pipe: Any, prompt: str) -> Any:
    """The embedding of one prompt, computed without the pipeline."""
    ids = pipe.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0]


def own_unet(pipe, prompt, x, t, context=None):
    given = x if context is None else torch.cat([x, context], dim=1)
    return pipe.unet(given, t, encoder_hidden_states=clip(pipe, prompt)).sample


def own_controlnet(pipe, prompt, x, t, context=None):
    states = clip(pipe, prompt)
    picture = pipe.control_image_processor.preprocess(pictures.picture(), 16, 16)
    down, middle = pipe.controlnet(x, t, states, picture, return_dict=False)
    return pipe.unet(x, t, states, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample


def own_refiner(pipe, prompt, x, t, context=None):
    ids = pipe.tokenizer_2(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    encoded = pipe.text_encoder_2(ids, output_hidden_states=True)
    # size, corner, and the pipeline's aesthetic scores
    sizes = torch.tensor([[16.0, 16.0, 0.0, 0.0, 6.0 if prompt else 2.5]])
    added = {"text_embeds": encoded[0], "time_ids": sizes}
    return pipe.unet(x, t, encoded.hidden_states[-2], added_cond_kwargs=added).sample


def own_pixart(pipe, prompt, x, t, context=None):
    found = pipe.tokenizer(prompt, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    states = pipe.text_encoder(found.input_ids, attention_mask=found.attention_mask)[0]
    given = {"encoder_hidden_states": states, "encoder_attention_mask": found.attention_mask}
    sizes = {"resolution": None, "aspect_ratio": None}
    return pipe.transformer(x, timestep=t[None], added_cond_kwargs=sizes, **given).sample.chunk(2, dim=1)[0]


def own_sana(pipe, prompt, x, t, context=None):
    found = pipe.tokenizer(prompt, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    states = pipe.text_encoder(found.input_ids, attention_mask=found.attention_mask)[0]
    return pipe.transformer(x, states, t[None], encoder_attention_mask=found.attention_mask).sample


OWN = {
    "image to image": own_unet,
    "inpainting": own_unet,
    "inpainting, 4 channels": own_unet,
    "controlnet": own_controlnet,
    "refiner": own_refiner,
    "pixart sigma": own_pixart,
    "sana": own_sana,
}
"""Name → what the network says to one prompt, from the models alone."""


def test_every_family_has_a_case():
    assert {type(case.make()).__name__ for case in MORE.values()} <= set(entries("family"))
    assert {family_of(case.make()).conditional for case in MORE.values()} == {True, False}


@pytest.mark.parametrize("name", OWN)
def test_both_branches_are_those_of_the_models_alone(name):
    setup = MORE[name].setup()
    run = observed(setup)
    step = run.step(-2)
    row = 1
    context = step.cond_inputs["_context"][[row]] if "_context" in step.cond_inputs else None
    x, t = step.cond.x[[row]], torch.tensor(step.t)
    with torch.no_grad():
        for prompt, branch in ((PROMPTS[row], step.cond), ("", step.uncond)):
            found = OWN[name](setup.pipe, prompt, x, t, context)
            torch.testing.assert_close(branch.value[[row]], found, rtol=1e-4, atol=1e-5)
    assert (step.cond.value - step.uncond.value).norm() > 1e-3 * step.cond.value.norm()


@pytest.mark.parametrize("name", ["inpainting", "controlnet", "pixart sigma", "sana"])
def test_maps_have_the_diagonal_of_the_jacobian_of_the_models_alone(name):
    setup = MORE[name].setup()
    run = observed(setup).rows([1])
    step = run.step(-2)
    context = step.cond_inputs.get("_context")
    x, t = step.cond.x, torch.tensor(step.t)
    exact = CurvatureDifference(-2, estimator=DiagonalEstimator(engine="exact"))
    estimate = exact.difference(Watched(run, setup.family.denoiser())).value

    def difference(x: Any) -> Any:
        return OWN[name](setup.pipe, PROMPTS[1], x, t, context) - OWN[name](setup.pipe, "", x, t, context)

    diagonal = jacobian(difference, x, vectorize=True).reshape(x.numel(), x.numel()).diagonal().view_as(x)
    # of a flow the noise is x + α·v
    factor = step.cond.alpha if setup.family.kind == "flow_prediction" else 1.0
    expected = factor * diagonal / step.cond.sigma
    torch.testing.assert_close(estimate, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["latent consistency", "latent consistency image to image"])
def test_a_latent_consistency_model_has_one_branch_that_reads_the_guidance(name):
    setup = MORE[name].setup()
    run = observed(setup)
    step = run.step(1)
    assert step.uncond is None
    assert not setup.guided
    embedding = setup.pipe.get_guidance_scale_embedding(torch.tensor([7.0]), embedding_dim=8)
    states = clip(setup.pipe, PROMPTS[0])
    with torch.no_grad():
        found = setup.pipe.unet(step.cond.x[:1], step.t, states, timestep_cond=embedding).sample
    torch.testing.assert_close(step.cond.value[:1], found, rtol=1e-4, atol=1e-5)
    assert torch.equal(run.latents, call(setup))


@pytest.mark.parametrize(
    ("name", "strength", "left"),
    [
        ("image to image", 1.0, [751, 501, 251, 1]),
        ("image to image", 0.5, [251, 1]),
        ("image to image", 0.25, [1]),
        ("sdxl inpainting", 0.9999, [501, 251, 1]),
        ("inpainting, 4 channels", 0.75, [501, 251, 1]),
        ("controlnet image to image", 0.5, [251, 1]),
        ("latent consistency image to image", 0.5, [499, 379, 259, 139]),
    ],
)
def test_the_steps_that_a_strength_leaves_are_counted(name, strength, left):
    case = MORE[name]
    setup = Setup.of(case.make(), {**case.call, "strength": strength})
    run = observed(setup)
    assert run.complete
    assert list(run.timesteps) == left
    assert setup.evaluations is None
    assert len(run.norms["delta"][0]) == len(left)


@pytest.mark.parametrize("strength", [0.5, 0.67, 0.84])
@pytest.mark.parametrize("kind", [PNDMScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler])
def test_the_steps_that_a_strength_leaves_are_those_that_the_network_sees(kind, strength):
    case = MORE["image to image"]
    pipe = case.make()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, skip_prk_steps=True)
    setup = Setup.of(pipe, {**case.call, "strength": strength, "num_inference_steps": 6})
    given: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda _, arguments: given.append(float(arguments[1])))
    run = observed(setup)
    assert run.complete
    assert list(run.timesteps) == given


def test_a_base_and_its_refiner_share_a_run():
    base, refiner = CASES["sdxl"].setup(), MORE["refiner"].setup()
    first = Setup.of(base.pipe, {**CASES["sdxl"].call, "denoising_end": 0.5})
    with watch(first.pipe) as seen:
        latents = call(first)
    assert seen.trajectory.complete
    assert seen.trajectory.timesteps == (751, 501)
    with watch(refiner.pipe, keep="all") as seen:
        made = call(refiner, image=latents, denoising_start=0.5)
    assert seen.trajectory.complete
    assert seen.trajectory.timesteps == (251, 1)
    torch.testing.assert_close(seen.trajectory.step(0).sample, latents)
    torch.testing.assert_close(seen.trajectory.latents, made)


@pytest.mark.parametrize("name", ["image to image", "controlnet", "refiner"])
def test_several_images_per_prompt_are_told_apart(name):
    setup = MORE[name].setup()
    with watch(setup.pipe) as seen:
        call(setup, seeds=range(4), num_images_per_prompt=2)
    for row, (prompt, seed) in enumerate([(PROMPTS[0], 0), (PROMPTS[0], 1), (PROMPTS[1], 2), (PROMPTS[1], 3)]):
        alone = next(generate(setup, [prompt], [seed])).trajectory
        torch.testing.assert_close(seen.trajectory.norms["delta"][row], alone.norms["delta"][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["inpainting", "controlnet", "sana"])
def test_half_precision_is_observed(name):
    case = MORE[name]
    setup = case.setup(case.make().to(torch.bfloat16))
    plain = call(setup)
    run = observed(setup)
    assert torch.equal(run.latents, plain)
    step = run.step(-1)
    again = setup.family.denoiser()(step.cond.x, step.level, step.cond_inputs)
    assert (again.value.float() - step.cond.value.float()).norm() < 0.05 * step.cond.value.float().norm()


@pytest.mark.parametrize("name", MORE)
def test_settings_survive_being_arguments_and_being_a_fingerprint(name):
    setup = MORE[name].setup()
    again = setup.family.sampling(setup.family.arguments(PROMPTS, setup.sampling), {**defaults(setup.pipe)})
    assert (again.steps, again.guidance, again.height) == (
        setup.sampling.steps,
        setup.sampling.guidance,
        setup.sampling.height,
    )
    assert fingerprint(setup.pipe, again) == fingerprint(setup.pipe, setup.sampling)
    json.dumps(fingerprint(setup.pipe, setup.sampling))


def defaults(pipe: Any) -> dict[str, Any]:
    from cryptomnesia.pipelines.call import defaults_of

    return defaults_of(pipe)


def test_a_picture_is_part_of_the_settings():
    case = MORE["image to image"]
    pipe = case.make()

    def setup(**more: Any) -> Setup:
        return Setup.of(pipe, {**case.call, **more})

    same = [pictures.picture(0), [pictures.picture(0)], [pictures.picture(0)] * 3]
    assert all(setup(image=image).fingerprint == setup().fingerprint for image in same)
    assert setup(image=pictures.picture(1)).fingerprint != setup().fingerprint
    assert setup(strength=0.5).fingerprint != setup().fingerprint
    with pytest.raises(UsageError, match="got 2 values of image; give one that holds for all images"):
        call(setup(image=[pictures.picture(0), pictures.picture(1)]))
    with pytest.raises(UsageError, match="StableDiffusionInpaintPipeline needs mask_image; give it as an argument"):
        call(Setup.of(pictures.inpainting(), {"image": pictures.picture()}))
    with pytest.raises(UsageError, match="takes no height and width; its pictures are as large as the one it is given"):
        call(Setup(pipe, Sampling(4, 2.0, 32, 32, options=pictures.IMAGE)))


def with_ip_adapter() -> Any:
    """Stable Diffusion whose network also reads the embedding of a picture, as an IP-Adapter has it."""
    torch.manual_seed(1)
    pipe = CASES["sd-epsilon"].make()
    processors = dict(pipe.unet.attn_processors)
    for name in processors:
        attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
        if "attn2" in name:
            processors[name] = IPAdapterAttnProcessor2_0(attention.to_q.out_features, 32, num_tokens=[4], scale=[0.5])
    pipe.unet.set_attn_processor(processors)
    pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(16, 32, 4)])
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return pipe


def test_the_picture_of_an_ip_adapter_reaches_the_maps():
    embeds = [torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))]
    call_ = {**CASES["sd-epsilon"].call, "ip_adapter_image_embeds": embeds}
    pipe = with_ip_adapter()
    setup = Setup.of(pipe, call_)
    plain, run = call(setup), observed(setup)
    assert torch.equal(run.latents, plain)
    assert not torch.equal(plain, call(Setup.of(pipe, {**call_, "ip_adapter_image_embeds": [-embeds[0]]})))
    view = setup.family.denoiser()
    for step in run.steps.values():
        for branch, inputs in ((step.cond, step.cond_inputs), (step.uncond, step.uncond_inputs)):
            torch.testing.assert_close(view(branch.x, step.level, inputs).value, branch.value, rtol=1e-4, atol=1e-5)
    (found,) = localize(pipe, PROMPTS[:1], localizers=["curvature-difference"], **call_)
    assert found.maps["curvature-difference"].isfinite().all()


def test_maps_of_other_baselines_see_the_picture_of_the_run():
    setup = MORE["inpainting"].setup()
    (found,) = localize(
        setup.pipe, PROMPTS[:1], seeds=[3], localizers=["guidance-map-empty"], **MORE["inpainting"].call
    )
    (same,) = localize(setup.pipe, PROMPTS[:1], seeds=[3], localizers=["guidance-map"], **MORE["inpainting"].call)
    # SD's unconditional branch is the empty caption, so both maps are one
    torch.testing.assert_close(found.maps["guidance-map-empty"], same.maps["guidance-map"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["image to image"])
def test_the_whole_chain_works_with_pictures(name):
    assert set(run_checks(check_family(MORE[name].setup)).values()) == {"passed"}
