"""What a pipeline gives its network reaches the evaluations that are made beside the run."""

import copy

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig

from cryptomnesia import UsageError, localize, watch
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.inputs import CONTEXT, Listed, Shared, input_rows, plain, sorted_out, together
from cryptomnesia.testing.miniatures import stable_diffusion, stable_diffusion_xl

CALL = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}


def with_lora():
    pipe = stable_diffusion()
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"]), "style")
    generator = torch.Generator().manual_seed(1)
    for name, weight in pipe.unet.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    return pipe


def test_the_scale_of_a_lora_given_in_the_call_reaches_the_map():
    prompts = ["a red circle", "a blue star"]
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "localizers": ["curvature", "collapse"]}
    called = list(localize(with_lora(), prompts, cross_attention_kwargs={"scale": 0.2}, **settings))
    pipe = with_lora()
    pipe.unet.set_adapters("style", 0.2)
    expected = list(localize(pipe, prompts, **settings))
    for found, wanted in zip(called, expected, strict=True):
        torch.testing.assert_close(found.image, wanted.image, rtol=1e-4, atol=1e-5)
        for name, heat in found.maps.items():
            torch.testing.assert_close(heat, wanted.maps[name], rtol=1e-2, atol=1e-3 * wanted.maps[name].abs().max())


def test_a_copy_of_the_pipeline_without_guidance_is_read_by_its_own_calls():
    pipe = stable_diffusion()
    pipe("a red circle", **CALL)
    other = copy.copy(pipe)
    with watch(pipe, keep="all") as seen:
        # the flag of `pipe` still says that there are two branches
        other("a red circle", **{**CALL, "guidance_scale": 1.0}, generator=torch.Generator().manual_seed(0))
    assert all(step.uncond is None for step in seen.trajectory.steps.values())
    assert seen.trajectory.steps[0].cond.x.shape == (1, 4, 8, 8)
    alone = stable_diffusion()
    with watch(alone, keep="all") as expected:
        alone("a red circle", **{**CALL, "guidance_scale": 1.0}, generator=torch.Generator().manual_seed(0))
    for number, step in expected.trajectory.steps.items():
        assert torch.equal(step.cond.value, seen.trajectory.steps[number].cond.value)


def test_a_batch_that_is_no_multiple_of_the_images_is_refused():
    pipe = stable_diffusion()
    with watch(pipe):
        pipe.scheduler.set_timesteps(2)
        x = torch.zeros(3, 4, 8, 8)
        value = pipe.unet(x, 500, encoder_hidden_states=torch.zeros(3, 5, 32)).sample
        with pytest.raises(UsageError, match="3 samples for 2 images"):
            pipe.scheduler.step(value[:2], pipe.scheduler.timesteps[0], x[:2])


def test_three_branches_are_refused():
    pipe = stable_diffusion()
    with watch(pipe):
        pipe.scheduler.set_timesteps(2)
        x = torch.zeros(3, 4, 8, 8)
        value = pipe.unet(x, 500, encoder_hidden_states=torch.zeros(3, 5, 32)).sample
        with pytest.raises(UsageError, match="3 branches for one step"):
            pipe.scheduler.step(value[:1], pipe.scheduler.timesteps[0], x[:1])


def test_both_branches_of_sdxl_keep_their_own_conditioning():
    pipe = stable_diffusion_xl()
    assert isinstance(pipe, StableDiffusionXLPipeline)
    with watch(pipe, keep=(0,)) as seen:
        pipe(["a red circle", "a blue star"], negative_prompt=["a green bar"] * 2, **CALL)
    step = seen.trajectory.step(0)
    assert step.uncond_inputs is not None
    for inputs in (step.cond_inputs, step.uncond_inputs):
        assert inputs["encoder_hidden_states"].shape[0] == inputs["added_cond_kwargs"]["time_ids"].shape[0] == 2
    first = step.cond_inputs["encoder_hidden_states"]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(*step.uncond_inputs["encoder_hidden_states"])
    view = family_of(pipe).denoiser()
    again = view(step.cond.x, step.level, step.cond_inputs).value
    torch.testing.assert_close(again, step.cond.value, rtol=1e-3, atol=1e-4)


def test_conditioning_is_sorted_by_what_belongs_to_an_image():
    given = {
        "states": torch.arange(4.0)[:, None],
        "ids": torch.zeros(4, 3),
        "shapes": [[1, 2]] * 4,
        "nested": {"scale": 0.5, "mask": torch.ones(4, 2)},
        "residuals": (torch.ones(4, 1), torch.zeros(4, 2)),
        "flag": True,
    }
    inputs = {
        name: sorted_out(value, 4, name=name, shared=frozenset({"ids"}), listed=frozenset({"shapes"}))
        for name, value in given.items()
    }
    assert isinstance(inputs["ids"], Shared)
    assert isinstance(inputs["shapes"], Listed)
    for rows in ([2, 3], torch.tensor([2, 3]), slice(2, 4)):
        two = plain(input_rows(inputs, rows))
        assert two["states"].flatten().tolist() == [2, 3]
        assert two["ids"].shape == (4, 3)
        assert two["shapes"] == [[1, 2]] * 2
        assert two["nested"]["scale"] == 0.5
        assert two["nested"]["mask"].shape == (2, 2)
        assert [part.shape for part in two["residuals"]] == [(2, 1), (2, 2)]
        assert two["flag"] is True
    both = together(input_rows(inputs, [0]), input_rows(inputs, [3]))
    assert both["states"].flatten().tolist() == [0, 3]
    assert plain(both)["shapes"] == [[1, 2]] * 2


def test_conditioning_that_does_not_fit_together_is_not_put_together():
    assert together({"states": torch.zeros(1, 5, 2)}, {"states": torch.zeros(1, 6, 2)}) is None
    assert together({"scale": Shared(0.5)}, {"scale": Shared(0.6)}) is None
    assert together({"a": Shared(1)}, {"b": Shared(1)}) is None
    assert together({"ids": Shared(torch.zeros(2))}, {"ids": Shared(torch.ones(2))}) is None


def test_notes_do_not_reach_the_network():
    assert plain({CONTEXT: torch.zeros(1), "scale": Shared(2.0)}) == {"scale": 2.0}
