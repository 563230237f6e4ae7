"""Watches leave a pipeline as they found it, in whatever way they are attached and removed."""

from functools import wraps
from itertools import permutations
from typing import Any

import pytest
import torch

from cryptomnesia import watch
from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.tracing.attaching import after_forward, before_forward
from cryptomnesia.tracing.trajectory import NORMS


def call(pipe, prompt="a red circle", seeds=(0,), **settings):
    return pipe(
        prompt,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
        **{"num_inference_steps": 4, "guidance_scale": 3.0, **settings},
    ).images


class ByKeywords:
    """Stands in the pipeline for its scheduler, and calls the scheduler's step with keywords alone."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def step(self, value: Any, t: Any, sample: Any, **more: Any) -> Any:
        return self.scheduler.step(timestep=t, sample=sample, model_output=value, **more)


def nearer(step, solver):
    """Steer half as far as the solver would go."""
    after = solver.after(step.guided.value)
    return solver.landing(step.guided.value, after, (step.sample + after) / 2)


@pytest.mark.parametrize("steer", [None, nearer])
def test_a_step_called_by_keywords_is_recorded_and_steered_as_any_other(steer):
    pipe = stable_diffusion()
    with watch(pipe, keep="all", steer=steer) as positional:
        expected = call(pipe)
    scheduler = pipe.scheduler
    with watch(pipe, keep="all", steer=steer) as named:
        pipe.scheduler = ByKeywords(scheduler)
        assert torch.equal(call(pipe), expected)
    assert "step" not in vars(scheduler)
    for name in NORMS:
        torch.testing.assert_close(named.trajectory.norms[name], positional.trajectory.norms[name], equal_nan=True)
    for number, step in positional.trajectory.steps.items():
        other = named.trajectory.steps[number]
        assert torch.equal(other.sample, step.sample)
        assert torch.equal(other.guided.value, step.guided.value)
        assert other.options == {"return_dict": False}


def test_a_step_without_its_sample_fails_as_without_a_watch():
    pipe = stable_diffusion()
    pipe.scheduler.set_timesteps(4)
    value = torch.zeros(1, 4, 8, 8)
    with watch(pipe), pytest.raises(TypeError, match="missing 1 required positional argument: 'sample'"):
        pipe.scheduler.step(value, timestep=pipe.scheduler.timesteps[0])


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_watches_may_end_in_any_order(order):
    pipe = stable_diffusion()
    plain = call(pipe)
    before = dict(vars(pipe.scheduler))
    with watch(pipe, steer=nearer) as steered:
        once = call(pipe)
    assert vars(pipe.scheduler).keys() == before.keys()
    blocks = [watch(pipe, steer=nearer if number == 0 else None) for number in range(3)]
    seen = [block.__enter__() for block in blocks]
    active = {*order}
    for number in order:
        latents = call(pipe)
        assert torch.equal(latents, once if 0 in active else plain)
        for other in active:
            assert torch.equal(seen[other].trajectory.latents, latents)
        blocks[number].__exit__(None, None, None)
        active.remove(number)
    assert [len(found.trajectories) for found in seen] == [order.index(number) + 1 for number in range(3)]
    assert vars(pipe.scheduler).keys() == before.keys()
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.unet._forward_hooks
    assert torch.equal(call(pipe), plain)
    assert len(steered.trajectories) == 1


@pytest.mark.parametrize("inner_first", [True, False])
def test_two_watches_compose_their_steering(inner_first):
    """The later watch steers first; the earlier one sees what it gave the solver and steers that."""
    pipe = stable_diffusion()

    def scaled(factor):
        return lambda step, solver: factor * step.guided.value

    first, second = watch(pipe, keep="all", steer=scaled(0.5)), watch(pipe, keep="all", steer=scaled(3.0))
    outer, inner = first.__enter__(), second.__enter__()
    both = call(pipe)
    for number, step in inner.trajectory.steps.items():
        torch.testing.assert_close(outer.trajectory.steps[number].guided.value, 3.0 * step.guided.value)
    for block in (second, first) if inner_first else (first, second):
        block.__exit__(None, None, None)
    with watch(pipe, steer=scaled(1.5)):
        torch.testing.assert_close(call(pipe), both)
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_scheduler_with_a_step_of_its_own_keeps_it(order):
    pipe = stable_diffusion()
    plain = call(pipe)
    calls = []
    step = pipe.scheduler.step

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return step(*args, **kwargs)

    pipe.scheduler.step = counted
    before = dict(vars(pipe.scheduler))
    blocks = [watch(pipe, steer=nearer), watch(pipe)]
    seen = [block.__enter__() for block in blocks]
    call(pipe)
    # two trials and the step itself at every evaluation
    assert len(calls) == 12
    for number in order:
        blocks[number].__exit__(None, None, None)
    assert vars(pipe.scheduler)["step"] is counted
    assert vars(pipe.scheduler).keys() == before.keys()
    assert torch.equal(call(pipe), plain)
    assert all(len(found.trajectories) == 1 for found in seen)


@pytest.mark.parametrize("wrapping", [True, False])
def test_a_step_that_is_patched_inside_a_watch_stays_patched(wrapping):
    pipe = stable_diffusion()
    plain = call(pipe)
    calls = []
    with watch(pipe) as seen:
        step = pipe.scheduler.step

        def counted(*args, **kwargs):
            calls.append(args)
            return step(*args, **kwargs)

        pipe.scheduler.step = wraps(step)(counted) if wrapping else counted
        assert torch.equal(call(pipe), plain)
        with watch(pipe) as inner:
            assert torch.equal(call(pipe), plain)
        assert torch.equal(inner.trajectory.norms["delta"], seen.trajectory.norms["delta"])
    assert len(calls) == 8
    assert vars(pipe.scheduler)["step"].__code__ is counted.__code__
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert torch.equal(call(pipe), plain)
    assert len(calls) == 12
    with watch(pipe) as later:
        call(pipe)
    assert torch.equal(later.trajectory.norms["delta"], inner.trajectory.norms["delta"])
    assert len(seen.trajectories) == 2
    assert len(calls) == 16


def test_a_module_that_is_compiled_inside_a_watch_stays_compiled():
    pipe = stable_diffusion()
    pipe.unet.compile(backend="eager")
    with watch(pipe):
        pipe.unet.compile(backend="eager")
        compiled = vars(pipe.unet)["_compiled_call_impl"]
    assert vars(pipe.unet)["_compiled_call_impl"] is compiled


def test_an_exception_inside_two_watches_leaves_nothing_behind():
    pipe = stable_diffusion()
    before = dict(vars(pipe.scheduler))

    def fail(step, solver):
        solver.after(step.guided.value)
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"), watch(pipe), watch(pipe, steer=fail):
        call(pipe)
    assert vars(pipe.scheduler).keys() == before.keys()
    assert not pipe.unet._forward_hooks


class Doubling(torch.nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("compiled", [False, True])
def test_hooks_before_and_after_a_call(compiled):
    """They leave in any order, and the module has its own call then."""
    network, seen = Doubling(), []
    if compiled:
        network.compile(backend="eager")
    own = vars(network)["_compiled_call_impl"] if compiled else None
    for order in permutations(range(3)):
        removals = [
            before_forward(network, lambda module, args: seen.append(("before", module, args[0].item()))),
            after_forward(network, lambda module, args, kwargs, output: seen.append(("after", module, output.item()))),
            before_forward(network, lambda module, args: seen.append(("also", module, args[0].item()))),
        ]
        assert network(torch.tensor(1.0)).item() == 2
        assert set(seen) == {("before", network, 1.0), ("also", network, 1.0), ("after", network, 2.0)}
        assert seen[-1][0] == "after"
        for number in order:
            removals[number]()
        seen.clear()
        network(torch.tensor(1.0))
        assert not seen
        assert vars(network).get("_compiled_call_impl") is own
        assert not network._forward_hooks
        assert not network._forward_pre_hooks
