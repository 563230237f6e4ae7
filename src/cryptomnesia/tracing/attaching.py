"""How a watch is attached to a pipeline: a wrapper around the scheduler's methods, and a hook on the network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from typing import Any, Protocol

from torch import Tensor, nn

_LOCK = Lock()
"""Held while wrappers and hooks are attached or removed."""

SolverCall = Callable[..., Any]
"""A scheduler's `step`, called with prediction, timestep, sample and the further arguments that the pipeline gives."""

_STEP_ARGUMENTS = ("model_output", "timestep", "sample")
"""Names of the first arguments of every scheduler's `step` in diffusers."""


class Recorder(Protocol):
    """An object that records a scheduler's runs and steps, as a `Watch` does."""

    def begin(self, scheduler: Any) -> None:
        """Begin the record of a new run with the timesteps that the scheduler has now."""
        ...

    def on_step(
        self,
        scheduler: Any,
        take: SolverCall,
        value: Tensor,
        t: Any,
        sample: Tensor,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """Take a step with `take`, record it, and return what `take` returns.

        Args:
            scheduler: the solver.
            take: takes the step.
            value: the prediction.
            t: the timestep.
            sample: the latents before the step.
            rest: further positional arguments.
            named: further keyword arguments.
        """
        ...


@dataclass(eq=False)
class Wrapping:
    """The wrappers around a scheduler's `step` and `set_timesteps`, for as long as the scheduler is watched.

    Attributes:
        watches: the watches that record the scheduler, oldest first.
        inner: name of a method → the method that its wrapper calls.
        attributes: name of a method → what the scheduler's instance had under that name, None where it had nothing.
        wrappers: name of a method → its wrapper.
    """

    watches: list[Recorder]
    inner: dict[str, Callable[..., Any]]
    attributes: dict[str, Any]
    wrappers: dict[str, Any] = field(default_factory=dict)


def attach(scheduler: Any, seen: Recorder) -> Wrapping:
    """Let a watch record a scheduler's steps."""
    with _LOCK:
        step = vars(scheduler).get("step")
        wrapping: Wrapping | None = getattr(step, "wrapping", None)
        # a function that somebody put around the wrapper with functools.wraps has its attributes, but is another one
        if wrapping is None or wrapping.wrappers["step"] is not step:
            wrapping = _wrap(scheduler)
        wrapping.watches.append(seen)
        return wrapping


def detach(scheduler: Any, seen: Recorder, wrapping: Wrapping) -> None:
    """Remove a watch; when the last one is removed, the scheduler gets its methods back."""
    with _LOCK:
        wrapping.watches.remove(seen)
        if wrapping.watches:
            return
        for name, attribute in wrapping.attributes.items():
            if vars(scheduler).get(name) is not wrapping.wrappers[name]:
                # somebody replaced the method inside the block; the replacement stays, and if it calls the wrapper,
                # that only calls the method behind it from now on
                continue
            if attribute is None:
                delattr(scheduler, name)
            else:
                setattr(scheduler, name, attribute)


def _wrap(scheduler: Any) -> Wrapping:
    """Replace a scheduler's `step` and `set_timesteps` by wrappers that let watches record them."""
    step, set_timesteps = scheduler.step, scheduler.set_timesteps
    inner = {"step": step, "set_timesteps": set_timesteps}
    wrapping = Wrapping([], inner, {name: vars(scheduler).get(name) for name in inner})

    # pipelines inspect the signatures of both methods, which `wraps` keeps
    @wraps(step)
    def watched_step(*args: Any, **kwargs: Any) -> Any:
        # a pipeline may give any of the first arguments by name
        positional, by_name = args[:3], _STEP_ARGUMENTS[len(args) :]
        if not kwargs.keys() >= set(by_name):
            # a step without one of these arguments fails with the scheduler's own error
            return step(*args, **kwargs)
        value, t, sample = *positional, *(kwargs.pop(name) for name in by_name)

        def taken(value: Tensor, t: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
            """The step, called by position and by name as the pipeline called it."""
            first = (value, t, sample)
            at = len(positional)
            return step(*first[:at], *rest, **dict(zip(by_name, first[at:], strict=True)), **named)

        take: SolverCall = taken
        for seen in tuple(wrapping.watches):
            take = _recorded(seen, scheduler, take)
        return take(value, t, sample, *args[3:], **kwargs)

    @wraps(set_timesteps)
    def watched_set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = set_timesteps(*args, **kwargs)
        for seen in tuple(wrapping.watches):
            seen.begin(scheduler)
        return result

    watched_step.wrapping = wrapping  # type: ignore[attr-defined]
    wrapping.wrappers = {"step": watched_step, "set_timesteps": watched_set_timesteps}
    for name, wrapper in wrapping.wrappers.items():
        # a fingerprint looks behind a wrapper that only observes
        wrapper.observed = wrapper, inner[name]
    scheduler.step, scheduler.set_timesteps = watched_step, watched_set_timesteps
    return wrapping


def _recorded(seen: Recorder, scheduler: Any, take: SolverCall) -> SolverCall:
    """A function that takes a step as `take` does, and lets a watch record and steer it."""

    def recorded(value: Tensor, t: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
        return seen.on_step(scheduler, take, value, t, sample, rest, named)

    return recorded


def before_forward(module: nn.Module, hook: Callable[..., None]) -> Callable[[], None]:
    """Call `hook(module, args)` before every call of a module; returns a function that ends that."""
    if (hooks := _hooks(module)) is not None:
        return _added(module, hooks, hooks.before, hook)
    return module.register_forward_pre_hook(hook, prepend=True).remove


def change_forward(module: nn.Module, hook: Callable[..., Any]) -> Callable[[], None]:
    """Give a module the arguments that `hook(module, args, kwargs)` returns, None to leave them.

    Returns:
        A function that ends that.
    """
    if (hooks := _hooks(module)) is not None:
        return _added(module, hooks, hooks.change, hook)
    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def after_forward(module: nn.Module, hook: Callable[..., None]) -> Callable[[], None]:
    """Call `hook(module, args, kwargs, output)` after every call of a module; returns a function that ends that."""
    if (hooks := _hooks(module)) is not None:
        return _added(module, hooks, hooks.after, hook)
    return module.register_forward_hook(hook, with_kwargs=True).remove


@dataclass(eq=False)
class _Hooks:
    """The hooks of a module that is compiled in place.

    Attributes:
        inner: the compiled call.
        before: called before it.
        change: called after these; they may give it other arguments.
        after: called after it.
    """

    inner: Callable[..., Any]
    before: list[Callable[..., None]] = field(default_factory=list)
    change: list[Callable[..., Any]] = field(default_factory=list)
    after: list[Callable[..., None]] = field(default_factory=list)


def _hooks(module: nn.Module) -> _Hooks | None:
    """The hooks of a module that is compiled in place, None for another module.

    PyTorch would compile hooks of its own, and compile the module again for every new one. So the compiled call is
    wrapped instead.
    """
    compiled = vars(module).get("_compiled_call_impl")
    if compiled is None:
        return None
    with _LOCK:
        compiled = vars(module)["_compiled_call_impl"]
        if (present := getattr(compiled, "hooks", None)) is not None:
            return present
        hooks = _Hooks(compiled)

        @wraps(compiled)
        def call(*args: Any, **kwargs: Any) -> Any:
            for hook in tuple(hooks.before):
                hook(module, args)
            for hook in tuple(hooks.change):
                args, kwargs = hook(module, args, kwargs) or (args, kwargs)
            output = hooks.inner(*args, **kwargs)
            for hook in tuple(hooks.after):
                hook(module, args, kwargs, output)
            return output

        call.hooks = hooks  # type: ignore[attr-defined]
        vars(module)["_compiled_call_impl"] = call
        return hooks


def _added(
    module: nn.Module, hooks: _Hooks, place: list[Callable[..., Any]], hook: Callable[..., Any]
) -> Callable[[], None]:
    """Add a hook to one of the lists of `hooks`; returns a function that removes it again."""
    with _LOCK:
        place.append(hook)

    def remove() -> None:
        with _LOCK:
            place.remove(hook)
            present = vars(module)["_compiled_call_impl"]
            # a module that was compiled again meanwhile has another call, without hooks
            if not (hooks.before or hooks.change or hooks.after) and getattr(present, "hooks", None) is hooks:
                vars(module)["_compiled_call_impl"] = hooks.inner

    return remove
