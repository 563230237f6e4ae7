"""How a network differs from one that is freshly made from the same configuration.

A patch of any kind shows here: attributes that were set (FreeU, tiling, the scale of an IP-Adapter), modules of another
class, attention processors, hooks, caches, methods that were replaced. Nothing is listed for a network as it was
loaded. So what other versions of diffusers or transformers call their attributes does not matter.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from cryptomnesia.pipelines.contents.adapters import is_adapted
from cryptomnesia.pipelines.contents.fresh import HARMLESS, fresh, same
from cryptomnesia.pipelines.contents.hooks import around_calls, flat, is_own_method, patches
from cryptomnesia.pipelines.contents.identity import code_of, identity, in_library, qualified

_OF_TORCH = frozenset({*vars(nn.Module()), "_compiled_call_impl", "_is_full_backward_hook"})
"""Attributes of every module; parameters and buffers are among the weights."""

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
    usual = fresh(network, config)
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    unaltered = {} if usual is None else dict(_modules(usual))
    present = dict(_modules(network))
    kinds: dict[type, None] = {}
    for place, module in present.items():
        kinds[type(module)] = None
        for what, value in _altered(f"the {part}'s {place}{'.' if place else ''}", module, unaltered.get(place), known):
            found[what].append((place, json.dumps(value, sort_keys=True) if not isinstance(value, str) else value))
    for place in unaltered.keys() - present.keys():
        found["class"].append((place, "None"))
    for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
        for what, value in _of_class(part, base, known):
            found[what].append(("", value))
    if usual is None:
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
        if name in _OF_TORCH or name in HARMLESS:
            continue
        before = usual.get(name)
        if name.startswith("_") and name not in usual and in_library(kind):
            # a library's notes about loading; no code that came with the class reads anything else
            continue
        if is_own_method(value, kind, name):
            continue
        if value is before or same(value, before) or same(value := _plain(value), _plain(before)):
            continue
        yield from flat(prefix + name, identity(f"{place}{name}", value, known))
    for name in usual.keys() - attributes.keys() - _OF_TORCH - HARMLESS:
        if usual[name] is not None:
            yield prefix + name, "None"
    yield from _buffers(prefix, place, module, fresh)
    if module.training and _is_random(module):
        yield f"{prefix}training", "True"
    yield from around_calls(place, module, fresh, known)


def _plain(value: Any) -> Any:
    """An attention processor as the one that computes the same, up to rounding."""
    name = type(value).__name__
    backend = getattr(value, "_attention_backend", None)
    if name in {*_LIKE, *_LIKE.values()} and in_library(type(value)):
        held = {key: item for key, item in vars(value).items() if key not in HARMLESS and not key.startswith("_")}
        return {"is": _LIKE.get(name, name), **held}
    if backend is not None and in_library(type(value)) and not str(_text(backend)).startswith(_ROUNDING):
        return {"is": name, "backend": _text(backend)}
    return value


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _buffers(prefix: str, place: str, module: nn.Module, fresh: nn.Module | None) -> Iterator[tuple[str, Any]]:
    """The buffers that are not among the weights, where they differ."""
    for name in module._non_persistent_buffers_set:
        value = module._buffers.get(name)
        before = None if fresh is None else fresh._buffers.get(name)
        if value is not None and not value.is_meta and not same(value, before):
            yield prefix + name, identity(f"{place}{name}", value)


def _is_random(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode."""
    rates = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
    if isinstance(module, nn.modules.dropout._DropoutNd):
        rates.append(module.p)
    return any(rates) or isinstance(module, nn.modules.batchnorm._BatchNorm) or not in_library(type(module))


def _of_class(part: str, kind: type, known: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """The code of a class of the user's own, and methods of a library's class that were replaced."""
    if not in_library(kind):
        yield f"{kind.__name__}.code", code_of(kind)[:12]
        return
    for name, value in patches(f"the {part}'s {kind.__name__}", kind, known):
        yield f"{kind.__name__}.{name}", str(value)
