"""What identifies a setup: everything that a calibration depends on, and what differs from it."""

import hashlib
import inspect
import json
from typing import Any

import torch
from torch import nn

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.settings import Sampling

STATISTICS = 1
"""Version of the detectors' arithmetic, the defaults of maps whose mean is one among it; a calibration made with
another one is refused."""

Fingerprint = dict[str, Any]
"""Everything a calibration depends on, as JSON values."""


def fingerprint(pipe: Any, sampling: Sampling, weights: dict[str, str] | None = None) -> Fingerprint:
    """What identifies a setup: weights (their digests, if already known), scheduler, settings, dtype.

    Settings are read as from a call that was made with them, so that it does not matter how they are written.
    """
    adapter = adapter_for(pipe)
    config = {key: value for key, value in dict(pipe.scheduler.config).items() if not key.startswith("_")}
    parameters = inspect.signature(type(pipe).__call__).parameters
    defaults = {name: each.default for name, each in parameters.items()}
    settings = adapter.sampling(adapter.arguments([""], sampling), defaults)
    return {
        "statistics": STATISTICS,
        "pipeline": type(pipe).__name__,
        "weights": weights or weights_digests(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, default=str, sort_keys=True)),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "height": settings.height,
        "width": settings.width,
        "options": dict(settings.options),
        "dtype": str(adapter.module.dtype).removeprefix("torch."),
    }


def weights_digest(pipe: Any) -> str:
    """SHA-256 over the weights of all networks of the pipeline; see `weights_digests`."""
    return hashlib.sha256(json.dumps(weights_digests(pipe), sort_keys=True).encode()).hexdigest()


def weights_digests(pipe: Any) -> dict[str, str]:
    """Name of each network of the pipeline → SHA-256 over names, shapes and values of its weights, in half precision.

    Of large tensors some 65,536 evenly spaced values are read, so that a model of any size takes a
    moment and any training step still shows. Half precision: a checkpoint is the same model
    whether it was loaded in fp32 or fp16.

    Raises:
        UsageError: for weights that are not in memory.
    """
    digests = {}
    for part, network in sorted(pipe.components.items()):
        if not isinstance(network, nn.Module):
            continue
        digest = hashlib.sha256()
        # a network wrapped by torch.compile is still the same
        for name, value in sorted(getattr(network, "_orig_mod", network).state_dict().items()):
            if value.is_meta:
                raise UsageError(
                    f"the weights of the {part} are not in memory; calibrate and guard before sequential offloading"
                )
            digest.update(f"{name} {tuple(value.shape)}".encode())
            flat = value.detach().flatten()
            some = flat[:: max(1, len(flat) // 65_536)].to("cpu", torch.float16)
            digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
        digests[part] = digest.hexdigest()
    return digests


def differing(then: Fingerprint, now: Fingerprint) -> list[str]:
    """What differs between the setup of a calibration and another one, in words."""
    flat_then, flat_now = _flat(then), _flat(now)
    return [
        f"{key} is {_short(flat_now.get(key))}, calibrated {_short(flat_then.get(key))}"
        for key in sorted(flat_then.keys() | flat_now.keys())
        if flat_then.get(key) != flat_now.get(key)
    ]


def _flat(values: Fingerprint, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
