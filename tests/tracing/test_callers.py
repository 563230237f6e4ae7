from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.tracing.callers import bare, caller_of, captions_of, is_pipeline


class Asking(torch.nn.Module):
    """A network that asks who evaluates it."""

    def forward(self, *args, **kwargs):
        raise LookupError(caller_of(self))


def asked(run):
    with pytest.raises(LookupError) as answer:
        run()
    return answer.value.args[0]


class Sampler:
    def __init__(self, network, solver):
        self.parts = [network]
        self.network, self.solver = network, solver

    def run(self, pipe=None):
        return self.network() if pipe is None else pipe("a red circle")


class Step(torch.nn.Module):
    def __init__(self, network, solver):
        super().__init__()
        self.network, self.solver = network, solver

    def forward(self):
        return self.network()


def test_the_innermost_pipeline_is_found():
    pipe, solver = stable_diffusion(), DDIMScheduler()
    network = Asking()
    network.config, network.dtype, network.device = pipe.unet.config, torch.float32, torch.device("cpu")
    pipe.register_modules(unet=network)
    assert is_pipeline(pipe)
    assert asked(lambda: pipe("a red circle")) is pipe
    sampler = Sampler(network, solver)
    assert asked(sampler.run) is sampler
    # a service around the pipeline
    assert asked(lambda: sampler.run(pipe)) is pipe
    step = Step(network, solver)
    assert asked(step) is step


def test_what_has_no_solver_or_another_network_is_no_pipeline():
    network, pipe = Asking(), stable_diffusion()
    learning_rate = SimpleNamespace(step=None)
    assert asked(lambda: Sampler(network, learning_rate).run()) is None
    assert asked(network) is None

    def evaluate(pipe):
        """A function whose first argument is a pipeline is not a method of it."""
        network()

    assert asked(lambda: evaluate(pipe)) is None
    other = Sampler(torch.nn.Identity(), DDIMScheduler())
    assert asked(lambda: other.run(lambda _: network())) is None


def test_a_network_without_its_wrappers():
    network = Asking()
    assert bare(network) is network
    assert bare(torch.compile(torch.nn.DataParallel(network), backend="eager")) is network
    assert bare(torch.nn.Sequential(network)) is not network
    assert bare(None) is None


def test_the_captions_of_a_running_call_are_one_per_image():
    pipe = stable_diffusion()
    seen = []

    def look(running, step, t, tensors):
        seen.append(captions_of(running))
        return tensors

    call = {"num_inference_steps": 1, "output_type": "latent", "callback_on_step_end": look}
    embeds = pipe.encode_prompt(["a red circle"], "cpu", 1, False)[0]
    pipe("a red circle", num_images_per_prompt=2, **call)
    pipe(["a red circle", "a blue star"], **call)
    pipe(prompt_embeds=embeds, guidance_scale=1.0, **call)
    assert seen == [["a red circle"] * 2, ["a red circle", "a blue star"], None]
    assert captions_of(pipe) is None
