import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.pipelines.loading import SCHEDULERS
from cryptomnesia.pipelines.rehearsal import rehearse
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.tracing.generation import check_call, generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal") / "tiny"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_refused_is_what_fails(folder, scheduler):
    pipe = load_pipeline(str(folder), scheduler=scheduler)
    refused = {"ddim": [1000], "pndm": [1, 2, 3, 1000], "dpm++": [1000], "unipc": [1000]}
    for steps in (1, 2, 3, 1000):
        setup = Setup.of(pipe, {"num_inference_steps": steps, "height": 16, "width": 16, "guidance_scale": 1.0})
        if steps in refused.get(scheduler, []):
            with pytest.raises(UsageError, match=rf"cannot do {steps} steps \("):
                check_call(setup)
        elif steps < 1000:
            (batch,) = generate(setup, ["a star"], [0], decode=False)
            assert batch.trajectory.complete
        else:
            check_call(setup)


def test_a_rehearsal_draws_nothing_that_the_caller_would_have_drawn():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    rehearse(DDPMScheduler(), 20)
    assert torch.equal(torch.rand(3), expected)


def test_schedulers_that_want_further_arguments_are_left_to_the_call():
    rehearse(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4)
    with pytest.raises(UsageError, match=r"PNDMScheduler cannot do 2 steps \(.*\); give another number"):
        rehearse(PNDMScheduler(), 2)


def test_an_absurd_number_of_steps_or_size_fills_no_memory(pipe):
    for call, words in (
        ({"num_inference_steps": 10**12}, "got 1000000000000 steps, the model knows 1000 timesteps; give fewer"),
        ({"height": 10**30, "width": 10**30}, "pixels; give at most 1048576 each"),
    ):
        setup = Setup.of(pipe, call)
        assert setup.evaluations is None or "height" in call
        with pytest.raises(UsageError, match=words):
            check_call(setup)
