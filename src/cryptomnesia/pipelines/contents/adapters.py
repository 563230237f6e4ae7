"""Adapters of a network (LoRA and its relatives, as peft injects them): which have an effect, and how much."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from cryptomnesia.pipelines.contents.walk import Walk
from cryptomnesia.pipelines.contents.weights import digest


def is_adapted(module: nn.Module) -> bool:
    """Whether peft has put a layer with adapters in the place of this one."""
    # whoever has adapters has imported peft
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)


def has_adapters(walk: Walk) -> bool:
    """Whether peft has put layers with adapters into a network."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and any(issubclass(kind, tuners.BaseTunerLayer) for kind in walk.kinds)


def adapted_layers(walk: Walk) -> dict[str, Any]:
    """Name → layer, of all layers with adapters."""
    return {name: module for name, module in walk.modules if is_adapted(module)} if has_adapters(walk) else {}


def without_adapters(walk: Walk, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of a network under the names that they have without adapters, and none of an adapter."""
    layers = adapted_layers(walk)
    if not layers:
        return weights
    plain = dict(weights)
    for layer in layers:
        prefix = f"{layer}." if layer else ""
        for name in [name for name in plain if name.startswith(prefix)]:
            value = plain.pop(name)
            if name.startswith(f"{prefix}base_layer."):
                plain[prefix + name.removeprefix(f"{prefix}base_layer.")] = value
    return plain


def adapters(part: str, walk: Walk, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Adapters by name, with the scale and a digest of the weights of each; those without an effect are left out.

    An adapter that is fused is part of the network's weights, so it is left out as well.

    Args:
        part: name of the network, for messages.
        walk: through the network.
        weights: its weights, those of the adapters included.
    """
    scales: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    about: dict[str, dict[str, str]] = {}
    found: dict[str, Any] = {}
    for place, layer in adapted_layers(walk).items():
        if layer.merged_adapters and layer.disable_adapters:
            # the layer takes them out at its next call
            found |= {name: {"scale": "fused, and then disabled"} for name in layer.merged_adapters}
        for name in _active(layer):
            scale = _scale(layer, name)
            if scale == 0 and _is_plain_lora(layer, name):
                continue
            scales.setdefault(name, {})[place] = scale
            about.setdefault(name, {})[place] = f"{type(layer).__name__} {_dropout(layer, name)}"
            tensors.setdefault(name, {}).update(_weights(place, name, weights))
    for name, by_layer in scales.items():
        values = set(by_layer.values())
        found[name] = {
            "scale": values.pop() if len(values) == 1 else f"by layer {_short_hash(by_layer)}",
            "weights": digest(part, walk.network, tensors[name], f"adapter {name}"),
            "layers": _short_hash(about[name]),
        }
    return dict(sorted(found.items()))


def _active(layer: Any) -> Iterator[str]:
    """Names of the adapters that a layer adds when it is called."""
    if layer.disable_adapters or layer.merged_adapters:
        # a layer with a merged adapter adds none
        return
    holders = [getattr(layer, name, {}) for name in layer.adapter_layer_names]
    for name in layer.active_adapters:
        if any(name in holder for holder in holders):
            yield name


def _scale(layer: Any, name: str) -> Any:
    """The factor that was given to an adapter: 1 after loading it; None for a kind that has no such factor."""
    scaling = getattr(layer, "scaling", {}).get(name)
    rank, alpha = (getattr(layer, attribute, {}).get(name) for attribute in ("r", "lora_alpha"))
    if scaling is None or not rank or not alpha:
        return scaling
    usual = alpha / (rank**0.5 if getattr(layer, "use_rslora", {}).get(name) else rank)
    return round(float(scaling) / usual, 6)


def _is_plain_lora(layer: Any, name: str) -> bool:
    """Whether an adapter with scale 0 adds nothing; DoRA, for instance, still changes the magnitudes."""
    variants = {**getattr(layer, "lora_variant", {}), **getattr(layer, "lora_magnitude_vector", {})}
    return type(layer).__module__.startswith("peft.tuners.lora") and name not in variants


def _dropout(layer: Any, name: str) -> str:
    """What an adapter drops at random, which it does in training mode only."""
    dropout = getattr(layer, "lora_dropout", {})
    dropout = dropout[name] if name in dropout else None
    rank, alpha = (getattr(layer, attribute, {}).get(name) for attribute in ("r", "lora_alpha"))
    rate = getattr(dropout, "p", 0.0) if getattr(dropout, "training", False) else 0.0
    return f"rank {rank} alpha {alpha} dropout {rate}"


def _weights(place: str, name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one adapter of one layer, without its name: two names of one adapter are one adapter."""
    prefix = f"{place}." if place else ""
    found = {}
    for key, value in weights.items():
        if key.startswith(prefix) and not key.startswith(f"{prefix}base_layer."):
            parts = key.split(".")
            if name in parts:
                found[".".join(part for part in parts if part != name)] = value
    return found


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
