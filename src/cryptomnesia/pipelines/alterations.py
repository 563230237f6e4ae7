"""How a network differs from one that is freshly made from the same configuration.

A patch of any kind shows here: attributes that were set (FreeU, tiling, the scale of an IP-Adapter), modules of another
class, attention processors, hooks, caches, methods that were replaced. Nothing is listed for a network as it was
loaded. So what other versions of diffusers or transformers call their attributes does not matter.
"""

import copy
import functools
import hashlib
import inspect
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cryptomnesia.pipelines.adapters import is_adapted
from cryptomnesia.pipelines.identity import VOUCHED, code_of, identity, in_library, qualified
from cryptomnesia.pipelines.observers import observes

_FRESH: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module | None]] = WeakKeyDictionary()
"""Network → its configuration, and a network that was made from it."""

_OF_TORCH = frozenset({*vars(nn.Module()), "_compiled_call_impl", "_is_full_backward_hook"})
"""Attributes of every module; parameters and buffers are among the weights."""

_HARMLESS = frozenset(
    {
        # kept by libraries about loading and moving
        "hf_device_map",
        "hf_quantizer",
        "is_loaded_in_4bit",
        "is_loaded_in_8bit",
        "is_quantized",
        "name_or_path",
        "peft_config",
        "quantization_config",
        "quantization_method",
        "to",
        "cuda",
        # the configuration has a section of its own
        "_internal_dict",
        "config",
        "generation_config",
        # memory instead of time: the same picture up to rounding
        "_chunk_dim",
        "_chunk_size",
        "_gradient_checkpointing_func",
        "gradient_checkpointing",
        "slice_size",
        "use_slicing",
        # looked at below
        "forward",
    }
)

_LIKE = {
    name: name.replace("2_0", "").replace("XFormers", "").replace("Sliced", "").replace("NPU", "").replace("XLA", "")
    for name in (
        "AttnAddedKVProcessor2_0",
        "AttnProcessor2_0",
        "AttnProcessorNPU",
        "IPAdapterAttnProcessor2_0",
        "IPAdapterXFormersAttnProcessor",
        "SlicedAttnAddedKVProcessor",
        "SlicedAttnProcessor",
        "XFormersAttnAddedKVProcessor",
        "XFormersAttnProcessor",
        "XLAFlashAttnProcessor2_0",
    )
}
"""Attention processors that compute the same as another one, up to rounding."""

_OFFLOADING = ("GroupOffloadingHook", "LazyPrefetchGroupOffloadingHook", "LayerExecutionTrackerHook")
_ALIGNING = ("AlignDevicesHook", "CpuOffload", "ModelHook", "SequentialHook")
"""Hooks that move weights and change no picture."""

_ROUNDING = ("flash", "_flash", "native", "_native", "xformers", "flex", "aiter")
"""How the names of attention backends begin that compute the same up to rounding."""


def alterations(part: str, network: nn.Module, config: Any, known: Mapping[int, str]) -> dict[str, str]:
    """What is altered in a network → how and where, in words; empty for a network as it was loaded.

    Args:
        part: name of the network, for messages.
        network: the network.
        config: its configuration as JSON values.
        known: `id` of objects that are described elsewhere → their names.

    Raises:
        UsageError: for an alteration whose effect cannot be told from that of another one.
    """
    fresh = _fresh(network, config)
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    own = dict(_modules(fresh)) if fresh is not None else {}
    present = dict(_modules(network))
    kinds: dict[type, None] = {}
    for place, module in present.items():
        kinds[type(module)] = None
        for what, value in _altered(f"the {part}'s {place}".rstrip(), module, own.get(place), known):
            found[what].append((place, json.dumps(value, sort_keys=True) if not isinstance(value, str) else value))
    for place in own.keys() - present.keys():
        found["class"].append((place, "None"))
    for kind in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
        for what, value in _of_class(part, kind, known):
            found[what].append(("", value))
    if fresh is None:
        about = json.dumps(sorted((what, sorted(places)) for what, places in found.items()))
        return {"structure": hashlib.sha256(about.encode()).hexdigest()}
    return {what: _in_words(places) for what, places in sorted(found.items())}


def _in_words(places: list[tuple[str, str]]) -> str:
    """Values and where they are, at any number of places in one short text that is unique for them."""
    values = sorted({value for _, value in places})
    where = sorted(place for place, _ in places)
    shown = ", ".join(values) if len(values) <= 3 else f"{len(values)} values"
    if len(where) == 1:
        return f"{shown} in {where[0]}" if where[0] else shown
    about = hashlib.sha256(json.dumps(sorted(places)).encode()).hexdigest()[:8]
    return f"{shown} in {len(where)} modules from {where[0]} on ({about})"


def _modules(network: nn.Module, place: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Name → module, without those that belong to adapters; see `adapters`."""
    seen = set()

    def inside(module: nn.Module, place: str) -> Iterator[tuple[str, nn.Module]]:
        while is_adapted(module):
            module = module.base_layer  # type: ignore[assignment]
        if id(module) in seen:
            return
        seen.add(id(module))
        yield place, module
        for name, child in module.named_children():
            yield from inside(child, f"{place}.{name}" if place else name)

    return inside(network, place)


def _altered(
    place: str, module: nn.Module, fresh: nn.Module | None, known: Mapping[int, str]
) -> Iterator[tuple[str, Any]]:
    """What differs between a module and its fresh counterpart, and how."""
    kind = type(module)
    if fresh is None or kind is not type(fresh):
        yield "class", qualified(kind)
    prefix = f"{kind.__name__}." if fresh is None else ""
    attributes, usual = vars(module), {} if fresh is None else vars(fresh)
    for name, value in attributes.items():
        if name in _OF_TORCH or name in _HARMLESS:
            continue
        before = usual.get(name)
        if name.startswith("_") and name not in usual and in_library(kind):
            # a library's notes about loading; no code that came with the class reads anything else
            continue
        if value is before or _same(value, before) or _same(value := _plain(value), _plain(before)):
            continue
        yield from _flat(prefix + name, identity(f"{place}.{name}", value, known))
    for name in usual.keys() - attributes.keys() - _OF_TORCH - _HARMLESS:
        if usual[name] is not None:
            yield prefix + name, "None"
    yield from _buffers(prefix, place, module, fresh)
    if module.training and _is_random(module):
        yield f"{prefix}training", "True"
    yield from _calls(place, module, fresh, known)


def _plain(value: Any) -> Any:
    """An attention processor as the one that computes the same, up to rounding."""
    name = type(value).__name__
    backend = getattr(value, "_attention_backend", None)
    if name in {*_LIKE, *_LIKE.values()} and in_library(type(value)):
        held = {key: item for key, item in vars(value).items() if key not in _HARMLESS and not key.startswith("_")}
        return {"is": _LIKE.get(name, name), **held}
    if backend is not None and in_library(type(value)) and not str(_text(backend)).startswith(_ROUNDING):
        return {"is": name, "backend": _text(backend)}
    return value


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object one by one."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(name if key == "is" else f"{name}.{key}", item)
    elif value != "":
        # an object that says it changes no picture is left out
        yield name, value


def _buffers(prefix: str, place: str, module: nn.Module, fresh: nn.Module | None) -> Iterator[tuple[str, Any]]:
    """The buffers that are not among the weights, where they differ."""
    for name in module._non_persistent_buffers_set:
        value = module._buffers.get(name)
        before = None if fresh is None else fresh._buffers.get(name)
        if value is not None and not value.is_meta and not _same(value, before):
            yield prefix + name, identity(f"{place}.{name}", value)


def _same(value: Any, before: Any, depth: int = 3) -> bool:
    """Whether an attribute is the same as that of a fresh module; nothing is the same as None."""
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        if value.shape != before.shape or before.is_meta != value.is_meta:
            return False
        # another processor may compute a constant with another rounding
        return value.is_meta or torch.allclose(
            value.detach().to("cpu", torch.float64), before.detach().to("cpu", torch.float64), rtol=2e-3, atol=1e-6
        )
    if type(value) is not type(before) or isinstance(value, Tensor):
        return False
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return value == before
    if isinstance(value, list | tuple):
        return len(value) == len(before) and all(map(_same, value, before))
    if isinstance(value, Mapping):
        return value.keys() == before.keys() and all(_same(value[key], before[key]) for key in value)
    if isinstance(value, nn.Module):
        return depth > 0
    if inspect.ismethod(value):
        return value.__func__ is before.__func__
    if isinstance(value, FunctionType):
        return value.__code__ is before.__code__ and in_library(value)
    if isinstance(value, functools.partial):
        return value.func is before.func and _same(value.args, before.args) and _same(value.keywords, before.keywords)
    if depth and in_library(type(value)) and hasattr(value, "__dict__"):
        mine, others = ({k: v for k, v in vars(one).items() if k not in _HARMLESS} for one in (value, before))
        return mine.keys() == others.keys() and all(_same(mine[key], others[key], depth - 1) for key in mine)
    return bool(value is before or (value == before) is True)


def _is_random(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode."""
    rates = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
    if isinstance(module, nn.modules.dropout._DropoutNd):
        rates.append(module.p)
    return any(rates) or isinstance(module, nn.modules.batchnorm._BatchNorm) or not in_library(type(module))


def _calls(
    place: str, module: nn.Module, fresh: nn.Module | None, known: Mapping[int, str]
) -> Iterator[tuple[str, Any]]:
    """What happens around a call of a module: replaced `forward`, hooks of torch, accelerate and diffusers."""
    for when, hooks in (("forward_pre_hook", module._forward_pre_hooks), ("forward_hook", module._forward_hooks)):
        usual = [] if fresh is None else [*getattr(fresh, f"_{when}s").values()]
        for hook in hooks.values():
            if not _observes(hook) and not any(_same(hook, other) for other in usual):
                yield from _flat(when, identity(f"{place}.{when}", hook, known))
    registry = getattr(module, "_diffusers_hook", None)
    for hook in getattr(registry, "hooks", {}).values():
        if type(hook).__name__ not in _OFFLOADING or not in_library(type(hook)):
            yield from _flat("hook", _settings(f"{place}.{type(hook).__name__}", hook, known))
    hook = getattr(module, "_hf_hook", None)
    for inner in getattr(hook, "hooks", [hook]):
        if inner is not None and not (type(inner).__name__ in _ALIGNING and in_library(type(inner))):
            yield from _flat("hook", _settings(f"{place}.{type(inner).__name__}", inner, known))
    forward = _innermost(module)
    if forward is not None:
        yield from _flat("forward", identity(f"{place}.forward", forward, {**known, id(module): "module"}))


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
            first = module._diffusers_hook._fn_refs[0]  # type: ignore[union-attr]
            forward = first.original_forward or first.forward
        elif (compiled := getattr(forward, "_torchdynamo_orig_callable", None)) is not None:
            forward = compiled
        elif inspect.ismethod(forward) and forward.__func__ is type(module).forward:
            return None
        else:
            return forward
    return None


def _of_class(part: str, kind: type, known: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """The code of a class of the user's own, and methods of a library's class that were replaced."""
    if not in_library(kind):
        yield f"{kind.__name__}.code", code_of(kind)[:12]
        return
    for name, member in vars(kind).items():
        if isinstance(member, FunctionType) and not in_library(member):
            words = identity(f"the {part}'s {kind.__name__}.{name}", member, known)
            if words != "":
                yield f"{kind.__name__}.{name}", str(words)


class _WithoutMemory(TorchFunctionMode):
    """Inside the block, in this thread, tensors that are made empty take no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _fresh(network: nn.Module, config: Any) -> nn.Module | None:
    """A network that is made from the configuration of another one; None if its class cannot be made from one."""
    known = _FRESH.get(network)
    if known is None or known[0] != config:
        # the weights are empty; what is drawn at random all the same must not change the user's random numbers
        with torch.random.fork_rng(devices=[]), _WithoutMemory(), torch.no_grad():
            known = _FRESH[network] = config, _made(network)
    return known[1]


def _made(network: nn.Module) -> nn.Module | None:
    kind: Any = type(network)
    config: Any = getattr(network, "config", None)
    try:
        if hasattr(kind, "from_config") and isinstance(config, Mapping):
            values = {name: value for name, value in config.items() if name != "quantization_config"}
            return kind.from_config(values).eval()
        if hasattr(kind, "_from_config") and hasattr(config, "to_diff_dict"):
            return kind(copy.deepcopy(config)).eval()
    except Exception:
        # a class of the user's own, whose configuration does not describe it; everything is compared then
        return None
    return None
