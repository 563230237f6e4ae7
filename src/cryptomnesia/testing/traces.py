"""What a method may touch during a run, and has to put back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.checks import expect


def networks(pipe: Any) -> dict[str, nn.Module]:
    """All modules of a pipeline, by a path."""
    return {
        f"{part}.{path}": module
        for part, network in pipe.components.items()
        if isinstance(network, nn.Module)
        for path, module in network.named_modules()
    }


@contextmanager
def left_alone(setup: Setup, name: str) -> Iterator[None]:
    """Fail if a set-up's pipeline, or a setting of the process, is not at the end of the block as it was before.

    Raises:
        CheckError: saying what was left behind.
    """
    before = traces(setup.pipe)
    yield
    after = traces(setup.pipe)
    left = [part for part in before if before[part] != after[part]]
    expect(not left, f"{name} leaves {', '.join(left)} changed behind")


def traces(pipe: Any) -> dict[str, Any]:
    """Everything that a method may touch and has to put back, by a name for messages."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = networks(pipe)
    return {
        "hooks on the networks": {
            path: [list(vars(module)[kind]) for kind in hooks] for path, module in modules.items()
        },
        "the networks' methods": {path: sorted(map(id, _patches(module))) for path, module in modules.items()},
        "the networks' weights": {
            path: [value.detach().float().cpu().numpy().tobytes() for value in module.parameters(recurse=False)]
            for path, module in modules.items()
        },
        "gradients": [value.grad is None for module in modules.values() for value in module.parameters(recurse=False)],
        "training mode": {path: module.training for path, module in modules.items()},
        "the scheduler's methods": sorted(name for name, value in vars(pipe.scheduler).items() if callable(value)),
        "the scheduler's configuration": dict(pipe.scheduler.config),
        "the pipeline's parts": {name: id(part) for name, part in pipe.components.items()},
        "the pipeline's class": type(pipe),
        "an interruption of the pipeline": getattr(pipe, "_interrupt", False),
        "the progress bar": dict(getattr(pipe, "_progress_bar_config", {})),
        "the mode of gradients": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the global random state": torch.random.get_rng_state().tolist(),
        "settings of torch": (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        ),
    }


def _patches(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name in ("forward", "__call__", "_compiled_call_impl")]


class Interrupted(Exception):
    """Raised by a network in the middle of a run, to see that everything is put back."""


@contextmanager
def broken_at(network: nn.Module, call: int) -> Iterator[list[int]]:
    """Have a network raise `Interrupted` when it is called for the `call`-th time, from 0; never for −1.

    Yields:
        A list with the number of calls so far.
    """
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == call + 1:
            raise Interrupted(f"call {call} of the network")

    handle = network.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def check_traces(setup: Setup, name: str, use: Callable[[], Any]) -> None:
    """Nothing is left behind, neither after ordinary use nor when the network raises an error at any call.

    Args:
        setup: whose pipeline is used.
        name: of the method.
        use: uses the method once.

    Raises:
        CheckError: saying what was left behind.
    """
    with left_alone(setup, name), broken_at(setup.family.module, -1) as calls:
        use()
    total = calls[0]
    for call in sorted({0, 1, total // 2, total - 1} & set(range(total))):
        with left_alone(setup, f"{name}, after the network failed,"), broken_at(setup.family.module, call):
            with suppress(Interrupted):
                use()
