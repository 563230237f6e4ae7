import numpy as np
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from PIL import Image

from cryptomnesia.guarding.calls import Noise, merged, prompt_of, replaced, single


def test_a_long_lived_generator_gives_other_noise_at_every_call():
    generator = torch.Generator().manual_seed(0)
    first = Noise({"generator": generator}).other(0, 1)["generator"].initial_seed()
    assert Noise({"generator": generator}).other(0, 1)["generator"].initial_seed() == first
    assert Noise({"generator": generator}).other(0, 2)["generator"].initial_seed() != first
    torch.randn(1, generator=generator)
    assert Noise({"generator": generator}).other(0, 1)["generator"].initial_seed() != first


def test_one_image_of_a_call_keeps_what_belongs_to_it():
    embeds = torch.arange(2.0)[:, None, None]
    arguments = {
        "prompt": ["a red circle", "a blue star"],
        "negative_prompt": "a ring",
        "negative_prompt_embeds": embeds,
        "num_images_per_prompt": 2,
        "generator": [torch.Generator()] * 4,
        "eta": 0.5,
    }
    assert [prompt_of(arguments, row) for row in range(4)] == ["a red circle"] * 2 + ["a blue star"] * 2
    alone = single(arguments, 3)
    assert torch.equal(alone.pop("negative_prompt_embeds"), embeds[1:])
    assert alone == {"prompt": ["a blue star"], "negative_prompt": ["a ring"], "eta": 0.5}
    latents = torch.randn(1, 4, 8, 8)
    one = {**alone, "latents": latents, "generator": torch.Generator().manual_seed(3)}
    many = merged([one, {**one, "prompt": ["a ring"]}])
    assert many["prompt"] == ["a blue star", "a ring"]
    assert many["eta"] == 0.5
    assert torch.equal(many["latents"], latents.expand(2, -1, -1, -1))
    assert [torch.rand(1, generator=each).item() for each in many["generator"]] == [
        torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    ] * 2


def test_an_image_is_replaced_in_every_form_of_output():
    for images, other, black in [
        (torch.ones(2, 3), torch.full((1, 3), 0.5), torch.zeros(3)),
        (np.ones((2, 3)), np.full((1, 3), 0.5), np.zeros(3)),
        ([Image.new("RGB", (1, 1), "white")] * 2, [Image.new("RGB", (1, 1), "red")], Image.new("RGB", (1, 1))),
    ]:
        for wanted, flags, new in [((other, [False]), [True, False], other[0]), (None, [True, True], black)]:
            found = replaced((images, [True, True]), 1, wanted)
            assert found[1] == flags
            assert np.array_equal(np.asarray(found[0][1]), np.asarray(new))
            assert np.array_equal(np.asarray(found[0][0]), np.asarray(images[0]))
    assert replaced((torch.ones(1, 3), None), 0, None)[1] is None


def test_an_output_stays_what_it_is():
    output = StableDiffusionPipelineOutput(images=torch.ones(2, 3), nsfw_content_detected=None)
    assert (
        replaced(output, 0, StableDiffusionPipelineOutput(images=torch.zeros(1, 3), nsfw_content_detected=None))
        is output
    )
    assert output.images.tolist() == output[0].tolist() == [[0.0] * 3, [1.0] * 3]
