"""The gate of a guard: a hook on the denoiser that lets guarded calls pass, and stops every other pipeline.

Pipelines share networks. So a guard of one pipeline also has to see what other pipelines do with its denoiser:
`Pipe.from_pipe(guarded)` or `ImageToImage(**guarded.components)` would otherwise return images that nobody judged. The
gate asks before every evaluation which pipeline makes it. An evaluation that no pipeline makes, by a map for instance,
passes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from cryptomnesia.errors import UsageError
from cryptomnesia.tracing.attaching import before_forward
from cryptomnesia.tracing.callers import bare, caller_of

_RUNNING: ContextVar[Any] = ContextVar("running", default=None)
"""The pipeline whose guarded call is running."""


@contextmanager
def guarded_call(pipe: Any) -> Iterator[None]:
    """Let the evaluations that `pipe` makes inside the block pass all gates."""
    before = _RUNNING.set(pipe)
    try:
        yield
    finally:
        _RUNNING.reset(before)


class Gate:
    """Stops evaluations of a network by pipelines that are not guarded.

    Copies of the network get the same gate: it is open for all of them as soon as the guard is detached.
    """

    def __init__(self, network: nn.Module, guarded: str, on_refusal: Callable[[], None]) -> None:
        """Close the gate.

        Args:
            network: the denoiser.
            guarded: name of the class of the guarded pipeline, for the message.
            on_refusal: called when an evaluation is refused.
        """
        self._network = network
        self._guarded = guarded
        self._on_refusal = on_refusal
        self._closed = True
        self._compiled = False
        self._removals: list[Callable[[], None]] = []
        self.place()

    def place(self) -> None:
        """Place the gate before the network, and again if the network was compiled in place meanwhile."""
        network = self._network
        compiled = vars(network).get("_compiled_call_impl") is not None
        if not self._closed or (self._removals and compiled == self._compiled):
            return
        self._remove()
        self._compiled = compiled
        self._removals.append(before_forward(network, self))
        if bare(network) is not network:
            # other pipelines may have the network without the wrapper
            self._removals.append(before_forward(bare(network), Inside(self)))

    def open(self) -> None:
        """Let everything pass from now on."""
        self._closed = False
        self._remove()

    def _remove(self) -> None:
        while self._removals:
            self._removals.pop()()

    def __call__(self, network: nn.Module, args: Any = ()) -> None:
        """Refuse an evaluation of the network that a pipeline makes outside a guarded call.

        Raises:
            UsageError: naming the pipeline, and how to guard it.
        """
        # where another pipeline compiles the network, its compiled code has to ask, too
        ask = torch.compiler.disable(self._ask) if torch.compiler.is_compiling() else self._ask
        ask(network)

    def _ask(self, network: nn.Module) -> None:
        if not self._closed:
            return
        caller = caller_of(network)
        if caller is None or caller is _RUNNING.get():
            return
        self._on_refusal()
        name = type(caller).__name__
        if hasattr(type(caller), "guarded_by"):
            raise UsageError(f"a guarded {name} was run past its guard; call the pipeline itself, or detach the guard")
        raise UsageError(
            f"a {name} that is not guarded evaluates the denoiser of a guarded {self._guarded}; guard it, too, with "
            "`guarding.also(pipe)` or `guard(pipe, calibration)`, or detach that guard"
        )

    def __deepcopy__(self, memo: Any) -> "Gate":
        return self

    def __reduce__(self) -> Any:
        # a network that is loaded in another process has no guard there
        return _Nothing, ()


class Inside:
    """The gate of a network that is wrapped by `torch.compile`.

    The gate of the wrapper has looked at what runs in compiled form, and must not be compiled.
    """

    def __init__(self, gate: Gate) -> None:
        """Take the gate."""
        self._gate = gate

    def __call__(self, network: nn.Module, args: Any = ()) -> None:
        """Ask the gate, unless the network is being compiled."""
        if not torch.compiler.is_compiling():
            self._gate(network)


class _Nothing:
    """A hook that does nothing."""

    def __call__(self, network: nn.Module, args: Any = ()) -> None:
        pass
