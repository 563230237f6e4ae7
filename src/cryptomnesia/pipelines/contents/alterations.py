"""How a network differs from one that is freshly made from the same configuration.

A patch of any kind shows here: attributes that were set (FreeU, tiling, the scale of an IP-Adapter), modules of another
class, attention processors, hooks, caches, methods that were replaced. Nothing is listed for a network as it was
loaded. So what other versions of diffusers or transformers call their attributes does not matter.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from operator import is_, itemgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from cryptomnesia.pipelines.contents.adapters import has_adapters, is_adapted
from cryptomnesia.pipelines.contents.fresh import HARMLESS, fresh, same
from cryptomnesia.pipelines.contents.hooks import around_calls, flat, is_own_method, patches
from cryptomnesia.pipelines.contents.identity import code_of, identity, in_library, qualified
from cryptomnesia.pipelines.contents.walk import Walk

_OF_TORCH = frozenset({*vars(nn.Module()), "_compiled_call_impl", "_is_full_backward_hook"})
"""Attributes of every module; parameters and buffers are among the weights."""

_HOLDING = ("_forward_hooks", "_forward_pre_hooks", "_non_persistent_buffers_set")
"""Attributes of every module that hold what is compared."""

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Types of values in which nothing can change."""

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


def alterations(part: str, walk: Walk, config: Any, known: Mapping[int, str]) -> dict[str, str]:
    """What is altered in a network → how and where, in words; empty for a network as it was loaded.

    Args:
        part: name of the network, for messages.
        walk: through the network.
        config: its configuration as JSON values.
        known: `id` of objects that are described elsewhere → their names.

    Raises:
        UsageError: for an alteration whose effect cannot be told from that of another one.
    """
    usual = fresh(walk.network, config)
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    compared = _COMPARED.get(walk.network)
    if compared is None or compared.usual is not usual:
        compared = _COMPARED[walk.network] = _Compared(usual, {} if usual is None else dict(_modules(usual)), {})
    unaltered, plain = compared.modules, compared.plain
    present = dict(_modules(walk.network) if has_adapters(walk) else walk.modules)
    kinds = dict.fromkeys(map(type, present.values()))
    for place, module in present.items():
        if (before := plain.get(place)) is not None and before.holds(module):
            continue
        differences = [
            *_altered(f"the {part}'s {place}{'.' if place else ''}", module, unaltered.get(place), known),
        ]
        for what, value in differences:
            found[what].append((place, json.dumps(value, sort_keys=True) if not isinstance(value, str) else value))
        plain[place] = None if differences else _Plain.of(module)
    for place in unaltered.keys() - present.keys():
        found["class"].append((place, "None"))
    for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
        for what, value in _of_class(part, base, known):
            found[what].append(("", value))
    if usual is None:
        about = json.dumps(sorted((what, sorted(places)) for what, places in found.items()))
        return {"structure": hashlib.sha256(about.encode()).hexdigest()}
    return {what: _in_words(places) for what, places in sorted(found.items())}


class _Plain:
    """A module that was compared, and in which nothing that counts can change unseen: its attributes are constants.

    No module is compared again as long as it holds the very same constants under the same names. Weights and buffers
    are looked at elsewhere, and so are the modules inside it.
    """

    def __init__(self, kind: type[nn.Module], names: list[str], constants: Mapping[str, Any]) -> None:
        """Keep what a module holds."""
        self._kind = kind
        self._names = names
        self._constants = itemgetter(*constants)
        self._values = [*constants.values()]

    @classmethod
    def of(cls, module: nn.Module) -> "_Plain | None":
        """A module in which nothing can change unseen, None for another one."""
        held = vars(module)
        if any(map(held.get, _HOLDING)) or "forward" in held:
            return None
        # a getter of one value would not return a sequence
        constants = {name: held[name] for name in ("training", "_is_full_backward_hook")}
        for name, value in held.items():
            if name in _OF_TORCH or name in HARMLESS:
                continue
            if not _is_constant(value):
                return None
            constants[name] = value
        return cls(type(module), [*held], constants)

    def holds(self, module: nn.Module) -> bool:
        """Whether this is still so."""
        held = vars(module)
        return (
            type(module) is self._kind
            and not any(map(held.get, _HOLDING))
            and [*held] == self._names
            and all(map(is_, self._values, self._constants(held)))
        )


def _is_constant(value: Any) -> bool:
    """Whether nothing can change within a value."""
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return type(value) in _CONSTANTS


class _Compared(NamedTuple):
    """What is kept of the comparisons of a network with a freshly made one.

    Attributes:
        usual: the freshly made network, None if its class cannot be made from a configuration.
        modules: its modules by name.
        plain: name of a module of the network → what it held, None where it has to be compared again.
    """

    usual: nn.Module | None
    modules: dict[str, nn.Module]
    plain: dict[str, _Plain | None]


_COMPARED: WeakKeyDictionary[nn.Module, _Compared] = WeakKeyDictionary()


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
