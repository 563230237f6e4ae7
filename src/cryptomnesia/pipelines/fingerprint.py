"""The fingerprint of a set-up: everything that a calibration depends on."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import canonical, defaults_of
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.settings import Sampling

RECORDS = 2
"""Version of the norms that `watch` records. A calibration that was made with another version is refused."""

Fingerprint = dict[str, Any]
"""Everything that a calibration depends on, as JSON values."""

_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
"""Network → checksums of its weights and the digest that belongs to them."""

_VALUES = 65_536
"""About as many values of every tensor are read."""


def fingerprint(pipe: Any, sampling: Sampling) -> Fingerprint:
    """The fingerprint of a set-up: weights, scheduler, settings and dtype.

    The settings are turned into arguments of a call and read from them again, so two ways of writing the same settings
    have the same fingerprint.
    """
    family = family_of(pipe)
    config = {key: value for key, value in dict(pipe.scheduler.config).items() if not key.startswith("_")}
    settings = family.sampling(family.arguments([""], sampling), defaults_of(pipe))
    return {
        "records": RECORDS,
        "pipeline": type(pipe).__name__,
        "weights": weights_digests(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, default=_in_json, sort_keys=True)),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "height": settings.height,
        "width": settings.width,
        "options": {name: canonical(name, value) for name, value in settings.options.items()},
        "dtype": str(family.module.dtype).removeprefix("torch."),
    }


def weights_digest(pipe: Any) -> str:
    """One SHA-256 for the weights of all networks of the pipeline; see `weights_digests`."""
    return hashlib.sha256(json.dumps(weights_digests(pipe), sort_keys=True).encode()).hexdigest()


def weights_digests(pipe: Any) -> dict[str, str]:
    """Name of each network of the pipeline → SHA-256 over names, shapes and values of its weights, in half precision.

    Of a large tensor some 65,536 evenly spaced values are read. So a model of any size takes a moment, and any training
    step still changes the digest. In half precision a checkpoint has the same digest whether it was loaded in fp32 or
    in fp16.

    A digest is kept as long as the network is, and it is computed again when any of the values that were read has
    changed. Checksums of the values show that. PyTorch's own counters of writes would miss those through `.data`, which
    is how a LoRA is usually merged.

    Raises:
        UsageError: for weights that are not in memory.
    """
    return {
        part: _digest(part, network)
        for part, network in sorted(pipe.components.items())
        if isinstance(network, nn.Module)
    }


def _digest(part: str, network: nn.Module) -> str:
    # torch.compile wraps a network in another one
    network = getattr(network, "_orig_mod", network)
    weights = sorted(network.state_dict().items())
    if any(value.is_meta for _, value in weights):
        raise UsageError(
            f"the weights of the {part} are not in memory; calibrate and guard before sequential offloading"
        )
    # a tensor of another class, for instance a quantized one, hides its numbers
    if any(type(value) is not Tensor for _, value in weights):
        return _read(weights)
    state = _checksums(weights)
    known = _KNOWN.get(network)
    if known is None or known[0] != state:
        known = _KNOWN[network] = state, _read(weights)
    return known[1]


def _read(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of weights."""
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        values = _sampled(value).to("cpu", torch.float16)
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _checksums(weights: Iterable[tuple[str, Tensor]]) -> list[tuple[Any, ...]]:
    """Name, shape, number format and checksum of every tensor.

    The bytes of the values that `_read` reads are taken as 64-bit integers. The checksum is their sum with the weights
    1, 3, 5, … modulo 2⁶⁴. An odd weight times the change of one integer is never 0, so a change of one value is seen.
    """
    tensors, sums = [], []
    for name, value in weights:
        octets = _sampled(value).contiguous().view(torch.uint8)
        if octets.storage_offset() % 8 or len(octets) % 8:
            # integers have to begin at a multiple of 8 bytes and to be complete
            octets = torch.cat([octets, octets.new_zeros(-len(octets) % 8)])
        integers = octets.view(torch.int64)
        sums.append((integers * _odd_numbers(value.device)[: len(integers)]).sum())
        tensors.append((name, tuple(value.shape), value.dtype))
    # one transfer from the device instead of one per tensor
    numbers = torch.stack([total.to(sums[0].device) for total in sums]).tolist() if sums else []
    return [(*tensor, number) for tensor, number in zip(tensors, numbers, strict=True)]


@cache
def _odd_numbers(device: torch.device) -> Tensor:
    """1, 3, 5, …, one for every 8 bytes of the largest sample of a tensor."""
    # a step is rounded down, so fewer than twice as many values are read; a complex number has 16 bytes
    return torch.arange(1, 2 * (2 * _VALUES * 2), 2, device=device)


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


def differences(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """What differs between the fingerprint of a calibration, `expected`, and that of another set-up, in words."""
    flat_expected, flat_found = flattened(expected), flattened(found)
    return [
        f"{key} is {_short(flat_found.get(key))}, calibrated {_short(flat_expected.get(key))}"
        for key in sorted(flat_expected.keys() | flat_found.keys())
        if flat_expected.get(key) != flat_found.get(key)
    ]


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _in_json(value: Any) -> Any:
    """A value of a scheduler's configuration that JSON does not know."""
    return canonical("", value) if isinstance(value, Tensor | np.ndarray) else str(value)


def _short(value: Any) -> str:
    """A value for a message; of a hash its first digits."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
