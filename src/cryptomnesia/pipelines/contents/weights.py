"""Digests of the weights of a network, wherever they are and however they are stored."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from operator import itemgetter
from threading import local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.contents.identity import identity
from cryptomnesia.pipelines.contents.walk import Walk

Named = tuple[str, Tensor]
"""A tensor and its name."""

_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, str]]] = WeakKeyDictionary()
"""Network → what was read → checksums of its weights and the digest that belongs to them."""

_STATE = frozenset({"state_dict", "_save_to_state_dict", "get_extra_state"})
"""Methods that decide what the weights of a module are."""

_ORDINARY = (Tensor, nn.Parameter)
"""Classes of tensors that hold nothing but their values."""

_VALUES = 65_536
"""About as many values of every tensor are read."""

_ODD = 2 * _VALUES * 2
"""One odd number for every 8 bytes of the largest sample of a tensor: a step is rounded down, so fewer than twice as
many values are read, and a complex number has 16 bytes."""

_SMALL = 16_384
"""A tensor with as many values is small."""

_JOINED = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""The number formats of which small tensors share a checksum."""


def digest(part: str, network: nn.Module, weights: Mapping[str, Tensor], which: str = "") -> str:
    """SHA-256 over names, shapes and values of weights, in half precision.

    Of a large tensor some 65,536 evenly spaced values are read. So a model of any size takes a moment, and any training
    step still changes the digest. In half precision a checkpoint has the same digest whether it was loaded in fp32 or
    in fp16. Integers, as quantized weights have them, are read as they are.

    A digest is kept as long as the network is, and it is computed again when any of the values that were read has
    changed. Checksums of the values show that. PyTorch's own counters of writes would miss those through `.data`, which
    is how a LoRA is usually merged.

    Args:
        part: name of the network, for messages.
        network: to which the weights belong.
        weights: tensors by name.
        which: name of this set of weights, if a network has several.

    Raises:
        UsageError: for weights that cannot be read.
    """
    plain: list[Named] = []
    notes: list[str] = []
    for item in weights.items():
        if type(item[1]) in _ORDINARY:
            plain.append(item)
            continue
        for inner in _plain(part, *item):
            (plain if isinstance(inner, tuple) else notes).append(inner)  # type: ignore[arg-type]
    plain.sort(key=itemgetter(0))
    state = sorted(notes), _checksums(plain)
    known = _KNOWN.setdefault(network, {})
    if which not in known or known[which][0] != state:
        known[which] = state, _read(plain, notes)
    return known[which][1]


def weights_of(part: str, walk: Walk) -> dict[str, Tensor]:
    """The weights of a network by name; of a network that accelerate offloads, those that its hooks hold.

    Args:
        part: name of the network, for messages.
        walk: through the network.

    Raises:
        UsageError: for weights that are neither in memory nor in accelerate's hooks.
    """
    weights = _state(walk)
    if _on_disk(walk):
        raise UsageError(
            f"the weights of the {part} are on disk, and cannot be read without loading all of them; use group "
            "offloading without offload_to_disk_path"
        )
    if not any(value.is_meta for value in weights.values()):
        return weights
    hooks = {name: hook for name, module in walk.modules for hook in _offloading(module)}
    return {name: _onloaded(hooks, part, name) if value.is_meta else value for name, value in sorted(weights.items())}


def _state(walk: Walk) -> dict[str, Tensor]:
    """What `state_dict` of the network returns, which takes several times as long; parameters are not detached."""
    plain = not walk.repeated and all(
        kind.state_dict is nn.Module.state_dict
        and kind._save_to_state_dict is nn.Module._save_to_state_dict
        and kind.get_extra_state is nn.Module.get_extra_state
        for kind in walk.kinds
    )
    state: dict[str, Tensor] = {}
    for place, module in walk.modules:
        held = vars(module)
        if not plain or held["_state_dict_hooks"] or held["_state_dict_pre_hooks"] or not _STATE.isdisjoint(held):
            # the network has another way of saying what its weights are
            return walk.network.state_dict()
        prefix = f"{place}." if place else ""
        for name, value in held["_parameters"].items():
            if value is not None:
                # a tensor of another class may look different when it is detached
                state[prefix + name] = value if type(value) is nn.Parameter else value.detach()
        if buffers := held["_buffers"]:
            lost = held["_non_persistent_buffers_set"]
            state |= {prefix + name: b.detach() for name, b in buffers.items() if b is not None and name not in lost}
    return state


def _offloading(module: nn.Module) -> list[Any]:
    """The hook of accelerate that holds the weights of a module, if there is one."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", [hook])
    return [hook for hook in hooks if getattr(hook, "weights_map", None) is not None][:1]


def _onloaded(hooks: Mapping[str, Any], part: str, name: str) -> Tensor:
    """A weight that a hook of its own module, or of one that contains it, puts in its place for every call."""
    owner, last = "", name
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        owner, last = ".".join(parts[:cut]), ".".join(parts[cut:])
        if owner in hooks and last in hooks[owner].weights_map:
            value = hooks[owner].weights_map[last]
            if not value.is_meta:
                return value
    raise UsageError(
        f"the weights of the {part} are not in memory; load them, or offload them with accelerate or diffusers"
    )


def _on_disk(walk: Walk) -> bool:
    """Whether diffusers' group offloading has put weights on disk and left empty tensors in their place."""
    if not walk.hooked:
        return False
    for _, module in walk.modules:
        registry = vars(module).get("_diffusers_hook")
        for hook in getattr(registry, "hooks", {}).values():
            if getattr(getattr(hook, "group", None), "offload_to_disk_path", None) is not None:
                return True
    return False


def _plain(part: str, name: str, value: Tensor) -> Iterator[Named | str]:
    """The ordinary tensors that a tensor of any class consists of, and texts that say how it is made of them."""
    if type(value) in _ORDINARY:
        yield name, value
        return
    kind = type(value).__name__
    if hasattr(value, "__tensor_flatten__"):
        names, context = value.__tensor_flatten__()  # type: ignore[attr-defined]
        yield f"{name} {kind} {identity(f'the {part}', context)}"
        for inner in names:
            yield from _plain(part, f"{name}.{inner}", getattr(value, inner))
        return
    # GGUF's parameters hold bytes, and beside them how to read them
    yield f"{name} {kind} {identity(f'the {part}', {**vars(value)})}"
    yield name, value.detach().as_subclass(Tensor)


def _read(weights: Iterable[Named], notes: Iterable[str] = ()) -> str:
    """SHA-256 of weights, and of what is noted beside them."""
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        values = _sampled(value)
        values = torch.view_as_real(values) if values.is_complex() else values
        values = values.to("cpu", torch.float16) if values.is_floating_point() and values.itemsize > 0 else values.cpu()
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    for note in notes:
        digest.update(note.encode())
    return digest.hexdigest()


def _checksums(weights: Iterable[Named]) -> list[tuple[Any, ...]]:
    """Name, shape and number format of every tensor, and behind them the checksums.

    The bytes of the values that `_read` reads are taken as 64-bit integers, whose bits are mixed. A checksum is their
    sum with the weights 1, 3, 5, … modulo 2⁶⁴. An odd weight times the change of one integer is never 0, so a change of
    one value is seen.
    Small tensors of one number format share checksums, for which some are joined: most tensors of a network are small,
    and one by one they would take longer than all the others. All of them together would take memory that the system
    has to provide anew at every call, which takes longer still.
    """
    about: list[tuple[Any, ...]] = []
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    joined: dict[tuple[torch.device, torch.dtype], int] = {}
    sums = []
    with torch.no_grad():
        for name, value in weights:
            kind, count = value.dtype, value.numel()
            about.append((name, value.shape, kind))
            if kind not in _JOINED or count > _SMALL:
                sums.append(_checksum(_sampled(value).contiguous()))
                continue
            key = value.device, kind
            joined[key] = joined.get(key, 0) + count
            if joined[key] > _VALUES:
                sums.append(_checksum(_flatten_dense_tensors(small.pop(key))))
                joined[key] = count
            small.setdefault(key, []).append(value)
        sums += [_checksum(_flatten_dense_tensors(values)) for values in small.values()]
    # one transfer from each device instead of one per checksum
    return [*about, *torch.stack([total.to(sums[0].device) for total in sums]).tolist()] if sums else about


def _checksum(values: Tensor) -> Tensor:
    """The checksum of values (n,), which are contiguous."""
    octets = values.detach().view(torch.uint8)
    if octets.storage_offset() % 8 or len(octets) % 8:
        # integers have to begin at a multiple of 8 bytes and to be complete
        octets = torch.cat([octets, octets.new_zeros(-len(octets) % 8)])
    integers = octets.view(torch.int64)
    # the highest bit, which is the sign of a value, counts the same under every odd weight, so that two changes of sign
    # would cancel; so it goes into lower bits, too
    mixed = torch.bitwise_right_shift(integers, 29, out=_MEMORY.of(integers)).bitwise_xor_(integers)
    odd = _odd_numbers(values.device, max(_ODD, 1 << (len(mixed) - 1).bit_length()))[: len(mixed)]
    # only on CPUs torch has products of integers
    return torch.dot(mixed, odd) if values.device.type == "cpu" else (mixed * odd).sum()


class _Memory(local):
    """Memory of a thread that is used again: the system provides new memory more slowly than a checksum is computed."""

    def __init__(self) -> None:
        """Begin with none."""
        self._values = torch.empty(0, dtype=torch.int64)

    def of(self, integers: Tensor) -> Tensor | None:
        """Memory for as many integers on the CPU; None on another device, where torch uses memory again itself."""
        if integers.device.type != "cpu":
            return None
        if len(self._values) < len(integers):
            self._values = torch.empty_like(integers)
        return self._values[: len(integers)]


_MEMORY = _Memory()


@cache
def _odd_numbers(device: torch.device, count: int) -> Tensor:
    """The first odd numbers 1, 3, 5, …, (count,)."""
    return torch.arange(1, 2 * count, 2, device=device)


def _sampled(value: Tensor) -> Tensor:
    """Some 65,536 evenly spaced values of a tensor, (n,); all values of a small one."""
    value = value.detach()
    step = max(1, value.numel() // _VALUES)
    if value.is_contiguous():
        return value.flatten()[::step]
    # `flatten` would copy the whole tensor, so the places of the values in memory are computed
    numbers = torch.arange(0, value.numel(), step, device=value.device)
    places = torch.zeros_like(numbers)
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        places += numbers % size * stride
        numbers //= size
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.as_strided((extent,), (1,))[places]
