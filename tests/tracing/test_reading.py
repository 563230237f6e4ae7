"""What a pipeline reads of a caption is seen in its first evaluation."""

import pytest
import torch

from cryptomnesia.testing.miniatures import stable_diffusion, unconditional
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.reading import conditioning, first_step
from family_cases import CASES

PROMPTS = ["a red ring", "a blue star"]


@pytest.mark.parametrize("name", ["sd-epsilon", "sdxl", "sd3", "flux true guidance"])
def test_the_conditioning_of_both_branches_is_that_of_a_run(name):
    setup = CASES[name].setup()
    found = first_step(setup.pipe, PROMPTS, setup.sampling)
    (run,) = generate(setup, PROMPTS, [0, 1], keep=(0,), decode=False)
    wanted = run.trajectory.step(0)
    assert found.sample.shape == wanted.sample.shape
    for one, other in ((found.cond_inputs, wanted.cond_inputs), (found.uncond_inputs, wanted.uncond_inputs)):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, other[key])
    assert conditioning(setup.pipe, PROMPTS, setup.sampling).keys() == found.cond_inputs.keys()


def test_the_call_ends_after_one_evaluation_and_the_pipeline_goes_on_as_before():
    pipe = stable_diffusion()
    seen = []
    handle = pipe.unet.register_forward_hook(lambda *_: seen.append(1))
    setup = CASES["sd-epsilon"].setup(pipe)
    first_step(pipe, PROMPTS, setup.sampling)
    assert len(seen) == 1
    pipe(PROMPTS, num_inference_steps=3, output_type="latent")
    assert len(seen) == 1 + 3
    handle.remove()


def test_without_guidance_there_is_one_branch():
    setup = CASES["sd unguided"].setup()
    assert first_step(setup.pipe, PROMPTS, setup.sampling).uncond_inputs is None
    setup = CASES["ddim"].setup(unconditional())
    assert first_step(setup.pipe, PROMPTS, setup.sampling).sample.shape == (2, 3, 8, 8)
