"""What identifies a set-up: everything that a calibration depends on, and what differs from it."""

import hashlib
import inspect
import json
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import canonical
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.settings import Sampling

RECORDS = 2
"""Version of the norms that `watch` records; a calibration made with another version is refused."""

Fingerprint = dict[str, Any]
"""Everything that a calibration depends on, as JSON values."""

_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
"""Network → the state of its weights in memory, and their digest."""

_VALUES = 65_536
"""Values of a tensor that are read, about."""


def fingerprint(pipe: Any, sampling: Sampling) -> Fingerprint:
    """What identifies a set-up: weights, scheduler, settings and dtype.

    Settings are read as from a call that was made with them, so it does not matter how they are written.
    """
    family = family_of(pipe)
    config = {key: value for key, value in dict(pipe.scheduler.config).items() if not key.startswith("_")}
    parameters = inspect.signature(type(pipe).__call__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    settings = family.sampling(family.arguments([""], sampling), defaults)
    return {
        "records": RECORDS,
        "pipeline": type(pipe).__name__,
        "weights": weights_digests(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, default=str, sort_keys=True)),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "height": settings.height,
        "width": settings.width,
        "options": {name: canonical(name, value) for name, value in settings.options.items()},
        "dtype": str(family.module.dtype).removeprefix("torch."),
    }


def weights_digest(pipe: Any) -> str:
    """SHA-256 over the weights of all networks of the pipeline; see `weights_digests`."""
    return hashlib.sha256(json.dumps(weights_digests(pipe), sort_keys=True).encode()).hexdigest()


def weights_digests(pipe: Any) -> dict[str, str]:
    """Name of each network of the pipeline → SHA-256 over names, shapes and values of its weights, in half precision.

    Of large tensors some 65,536 evenly spaced values are read, so that a model of any size takes a moment and any
    training step still shows. Half precision: a checkpoint is the same model whether it was loaded in fp32 or fp16.
    A network is read again only after its weights were replaced or written to.

    Raises:
        UsageError: for weights that are not in memory.
    """
    return {
        part: _digest(part, network)
        for part, network in sorted(pipe.components.items())
        if isinstance(network, nn.Module)
    }


def _digest(part: str, network: nn.Module) -> str:
    # a network wrapped by torch.compile is still the same
    weights = sorted(getattr(network, "_orig_mod", network).state_dict().items())
    # torch counts the writes to a tensor, but not to one that was made in inference mode
    state = tuple((name, value.data_ptr(), None if value.is_inference() else value._version) for name, value in weights)
    known = _KNOWN.get(network)
    if known is not None and known[0] == state:
        return known[1]
    found = _read(part, weights)
    if not any(version is None for _, _, version in state):
        _KNOWN[network] = state, found
    return found


def _read(part: str, weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in weights:
        if value.is_meta:
            raise UsageError(
                f"the weights of the {part} are not in memory; calibrate and guard before sequential offloading"
            )
        digest.update(f"{name} {tuple(value.shape)}".encode())
        flat = value.detach().flatten()
        sample = flat[:: max(1, len(flat) // _VALUES)].to("cpu", torch.float16)
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def differences(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """What differs between the set-up of a calibration and another one, in words."""
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


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
