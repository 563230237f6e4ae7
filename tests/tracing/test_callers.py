from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.tracing.callers import bare, caller_of, is_pipeline


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
