"""What happens around the calls of a module: hooks of torch, accelerate and diffusers, and a replaced `forward`."""

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from cryptomnesia.pipelines.contents.fresh import same
from cryptomnesia.pipelines.contents.identity import VOUCHED, identity, in_library
from cryptomnesia.pipelines.contents.members import Members
from cryptomnesia.pipelines.contents.observers import observes

_OFFLOADING = ("GroupOffloadingHook", "LazyPrefetchGroupOffloadingHook", "LayerExecutionTrackerHook")
_ALIGNING = ("AlignDevicesHook", "CpuOffload", "ModelHook", "SequentialHook")
"""Hooks that move weights and change no picture."""

_UNPATCHED: WeakKeyDictionary[type | ModuleType, Members] = WeakKeyDictionary()
"""Class or module → its members when none of them came from outside."""

_FIXED = (classmethod, staticmethod, property, MethodType)
"""Members that refer to the same function for as long as they exist."""


def around_calls(
    place: str, module: nn.Module, fresh: nn.Module | None, known: Mapping[int, str]
) -> Iterator[tuple[str, Any]]:
    """What happens around a call of a module: replaced `forward`, hooks of torch, accelerate and diffusers."""
    for when, hooks in (("forward_pre_hook", module._forward_pre_hooks), ("forward_hook", module._forward_hooks)):
        usual = [] if fresh is None else [*getattr(fresh, f"_{when}s").values()]
        # a snapshot, because other threads attach hooks to a network that they share with this one
        for hook in [*hooks.values()]:
            if not _observes(hook) and not any(same(hook, other) for other in usual):
                yield from flat(when, identity(f"{place}{when}", hook, known))
    registry = getattr(module, "_diffusers_hook", None)
    for hook in [*getattr(registry, "hooks", {}).values()]:
        if type(hook).__name__ not in _OFFLOADING or not in_library(type(hook)):
            yield from flat("hook", _settings(f"{place}{type(hook).__name__}", hook, known))
    hook = getattr(module, "_hf_hook", None)
    for inner in getattr(hook, "hooks", [hook]):
        if inner is not None and not (type(inner).__name__ in _ALIGNING and in_library(type(inner))):
            yield from flat("hook", _settings(f"{place}{type(inner).__name__}", inner, known))
    forward = _innermost(module)
    if forward is not None:
        yield from flat("forward", identity(f"{place}forward", forward, {**known, id(module): "module"}))


def global_patches(known: Mapping[int, str]) -> Iterator[tuple[str, Any]]:
    """What is altered in all networks: hooks that torch calls for every module, and functions that took torch's place.

    Packages of attention kernels are switched on by putting their function into `torch.nn.functional`.
    """
    yield from patches("torch.nn.functional", nn.functional, known)
    torch_modules: Any = nn.modules.module
    for when in ("forward_pre_hook", "forward_hook"):
        for hook in [*getattr(torch_modules, f"_global_{when}s").values()]:
            if not _observes(hook):
                yield from flat(when, identity(f"torch's global {when}", hook, known))


def _observes(hook: Any) -> bool:
    """Whether a hook changes nothing: this library's, those with which transformers collects states, and counters."""
    ours = str(getattr(hook, "__module__", "")).startswith(("cryptomnesia.", "transformers.utils.output_capturing"))
    return ours or observes(hook)


def _settings(place: str, hook: Any, known: Mapping[int, str]) -> dict[str, Any]:
    """A hook's class and settings, without what it remembers of a run."""
    vouched = getattr(hook, VOUCHED, None)
    if isinstance(vouched, str):
        return {"is": vouched}
    settings = {
        name: value
        for name, value in vars(hook).items()
        if not (name.startswith("_") or name == "fn_ref" or "state" in name or isinstance(value, Tensor))
    }
    named = {name: identity(f"{place}.{name}", value, known) for name, value in settings.items()}
    return {"is": identity(place, type(hook)), **named}


def _innermost(module: nn.Module) -> Any:
    """The function in the place of a module's `forward`, under those of libraries' hooks; None if there is none."""
    forward = vars(module).get("forward")
    while forward is not None:
        function = getattr(forward, "func", None)
        maker = getattr(function, "__module__", None) if isinstance(forward, functools.partial) else None
        if maker == "accelerate.hooks":
            forward = vars(module).get("_old_forward")
        elif maker == "diffusers.hooks.hooks":
            first: Any = vars(module)["_diffusers_hook"]._fn_refs[0]
            forward = first.original_forward or first.forward
        elif (compiled := getattr(forward, "_torchdynamo_orig_callable", None)) is not None:
            forward = compiled
        elif inspect.ismethod(forward) and forward.__func__ is type(module).forward:
            return None
        else:
            return forward
    return None


def is_own_method(value: Any, kind: type, name: str) -> bool:
    """Whether a value is the method `name` of an object of this class, perhaps compiled."""
    value = getattr(value, "_torchdynamo_orig_callable", value)
    return inspect.ismethod(value) and value.__func__ is getattr(kind, name, None)


def patches(place: str, owner: type | ModuleType, known: Mapping[int, str]) -> Iterator[tuple[str, Any]]:
    """The functions in a library's class or module that come from outside: name → what each is.

    Raises:
        UsageError: for a function that cannot be told from another one.
    """
    members = dict(vars(owner))
    if (before := _UNPATCHED.get(owner)) is not None and before.holds(members):
        return
    unpatched = True
    for name, member in members.items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, FunctionType) and not in_library(function):
            unpatched = False
            yield from flat(name, identity(f"{place}.{name}", function, known))
        elif function is not member and not isinstance(member, _FIXED):
            # it may refer to another function later
            unpatched = False
    if unpatched and _is_lasting(owner):
        _UNPATCHED[owner] = Members(members)


def _is_lasting(owner: type | ModuleType) -> bool:
    """Whether a module or a class is there for as long as the process, so that its members may be kept."""
    if isinstance(owner, ModuleType):
        return sys.modules.get(owner.__name__) is owner
    return getattr(sys.modules.get(owner.__module__), owner.__name__, None) is owner


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object one by one."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(name if key == "is" else f"{name}.{key}", item)
    elif value != "":
        # an object that says it changes no picture is left out
        yield name, value
