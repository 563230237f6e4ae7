"""The fingerprint of a set-up: everything that a calibration depends on.

What was altered in a network is found by comparison with a freshly made one, so that no list of possible alterations
has to be complete; see `alterations`. What cannot be told from something else is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from cryptomnesia.pipelines.call import canonical, defaults_of, own_class
from cryptomnesia.pipelines.contents.adapters import adapters, has_adapters, without_adapters
from cryptomnesia.pipelines.contents.alterations import alterations
from cryptomnesia.pipelines.contents.hooks import global_patches
from cryptomnesia.pipelines.contents.identity import identity
from cryptomnesia.pipelines.contents.parts import (
    changed,
    pipeline_identity,
    scheduler_alterations,
    scheduler_config,
    tokenizer_identity,
)
from cryptomnesia.pipelines.contents.tiling import tiles
from cryptomnesia.pipelines.contents.walk import Walk
from cryptomnesia.pipelines.contents.weights import digest, weights_of
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.settings import Sampling

RECORDS = 2
"""Version of the norms that `watch` records. A calibration that was made with another version is refused."""

VERSION = 2
"""Version of fingerprints. A calibration whose fingerprint has another version is refused."""

Fingerprint = dict[str, Any]
"""Everything that a calibration depends on, as JSON values."""

_SHOWN = 4
"""Differences of one section that a message names."""

_NOT_COMPUTED = frozenset({"architectures", "dtype", "model_type", "torch_dtype", "transformers_version"})
"""What transformers' configurations hold beside what is computed."""


def fingerprint(pipe: Any, sampling: Sampling) -> Fingerprint:
    """The fingerprint of a set-up. Sections that would be empty are left out.

    The settings are turned into arguments of a call and read from them again, so two ways of writing the same settings
    have the same fingerprint.

    Raises:
        UsageError: for a part that changes pictures in a way that cannot be told from another one.
    """
    family = family_of(pipe)
    settings = family.sampling(family.arguments([""], sampling), defaults_of(pipe))
    config = scheduler_config(pipe.scheduler, settings.steps)
    # verdicts and maps come before a safety checker looks at the finished pictures
    walks = {part: Walk.through(network) for part, network in networks(pipe).items() if part != "safety_checker"}
    known = _known(pipe)
    sections: dict[str, Any] = {**_networks(walks, known, tiled=tiles(pipe, settings))}
    dtype = _dtype(family.module, walks, sections["dtypes"])
    sections["dtypes"] = {part: kinds for part, kinds in sections["dtypes"].items() if kinds != dtype}
    sections["scheduler_altered"] = scheduler_alterations(pipe.scheduler, known)
    sections["tokenizers"] = {
        name: tokenizer_identity(part) for name, part in pipe.components.items() if hasattr(part, "get_vocab")
    }
    sections["pipe"] = pipeline_identity(pipe, known)
    sections["global"] = dict(global_patches(known))
    sections["autocast"] = _autocast(family.module)
    return {
        "version": VERSION,
        "records": RECORDS,
        "pipeline": identity("the pipeline's class", own_class(pipe)),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, default=_in_json, sort_keys=True)),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "height": settings.height,
        "width": settings.width,
        "options": {name: canonical(name, value) for name, value in settings.options.items()},
        "dtype": dtype,
        **{name: section for name, section in sections.items() if section},
    }


def model_fingerprint(pipe: Any) -> Fingerprint:
    """The sections of a fingerprint that no setting changes, and the pipeline's class.

    Raises:
        UsageError: for a pipeline of an unknown family, or weights that cannot be read.
    """
    family_of(pipe)
    parts = weights_digests(pipe)
    parts.pop("safety_checker", None)
    return {
        "version": VERSION,
        "records": RECORDS,
        "pipeline": identity("the pipeline's class", own_class(pipe)),
        "weights": parts,
    }


def weights_digest(pipe: Any) -> str:
    """One SHA-256 for the weights of all networks of the pipeline, its adapters and other alterations included."""
    walks = {part: Walk.through(network) for part, network in networks(pipe).items()}
    found = {
        name: section for name, section in _networks(walks, _known(pipe)).items() if name not in ("dtypes", "config")
    }
    # without alterations it is the digest of the weights alone
    altered = {name: {k: v for k, v in section.items() if "structure" not in v} for name, section in found.items()}
    about = {name: section for name, section in altered.items() if section}
    about = about["weights"] if about.keys() == {"weights"} else about
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def weights_digests(pipe: Any) -> dict[str, str]:
    """Name of each network of the pipeline → SHA-256 of its weights, without adapters; see `weights.digest`.

    Raises:
        UsageError: for weights that are not in memory.
    """
    found = {}
    for part, network in networks(pipe).items():
        walk = Walk.through(network)
        found[part] = digest(part, network, without_adapters(walk, weights_of(part, walk)))
    return found


def networks(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by name, without what wraps them to compile, train or distribute them."""
    return {part: _bare(network) for part, network in sorted(pipe.components.items()) if isinstance(network, nn.Module)}


def _bare(network: nn.Module) -> nn.Module:
    while True:
        if isinstance(inner := vars(network)["_modules"].get("_orig_mod"), nn.Module):
            network = inner
        elif isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif type(network).__module__.startswith("peft.peft_model"):
            network = network.get_base_model()  # type: ignore[operator]
        else:
            return network


def _networks(
    walks: Mapping[str, Walk], known: Mapping[int, str], *, tiled: frozenset[str] = frozenset()
) -> dict[str, dict[str, Any]]:
    """What a fingerprint holds of networks: weights, configurations, dtypes, adapters, alterations."""
    found: dict[str, dict[str, Any]] = {"weights": {}, "config": {}, "dtypes": {}, "adapters": {}, "altered": {}}
    for part, walk in walks.items():
        network = walk.network
        weights = weights_of(part, walk)
        config = _config(part, network)
        base = without_adapters(walk, weights)
        found["weights"][part] = digest(part, network, base)
        found["config"][part] = config
        found["dtypes"][part] = _dtypes(base)
        found["adapters"][part] = adapters(part, walk, weights)
        altered = alterations(part, walk, config, known)
        if part not in tiled:
            altered = {name: value for name, value in altered.items() if not _about_tiles(name)}
        found["altered"][part] = altered
    return {name: {part: value for part, value in section.items() if value} for name, section in found.items()}


def _about_tiles(name: str) -> bool:
    return name == "use_tiling" or name.startswith("tile_")


def _known(pipe: Any) -> dict[int, str]:
    """`id` → name of what a fingerprint describes elsewhere, so that a function may refer to it."""
    return {id(pipe): "the pipeline"} | {
        id(part): f"the {name}" for name, part in pipe.components.items() if part is not None
    }


def _config(part: str, network: nn.Module) -> dict[str, Any]:
    """What differs in a network's configuration from the defaults of its class."""
    config: Any = getattr(network, "config", None)
    if hasattr(config, "to_diff_dict"):
        values = config.to_diff_dict()
    elif isinstance(config, Mapping) and hasattr(network, "register_to_config"):
        values = changed(network)
    else:
        return {}
    kept = {
        name: value
        for name, value in values.items()
        if not name.startswith("_") and name not in _NOT_COMPUTED and name != "quantization_config"
    }
    return json.loads(json.dumps(identity(f"the configuration of the {part}", kept)))


def _dtypes(weights: Mapping[str, Tensor]) -> str:
    """The number formats of a network's weights."""
    kinds = {value.dtype for value in weights.values()}
    return "+".join(sorted(_name(kind) for kind in kinds if kind.is_floating_point))


def _dtype(module: nn.Module, walks: Mapping[str, Walk], dtypes: Mapping[str, str]) -> str:
    """The number format in which a network computes, as it says itself."""
    network, own = _bare(module), getattr(type(module), "dtype", None) is ModelMixin.dtype
    for part, walk in walks.items():
        kinds = dtypes.get(part, "")
        alone = kinds and "+" not in kinds and not (walk.hooked or has_adapters(walk))
        if own and alone and walk.network is network:
            # it would look through all modules for the first weight that has one
            return kinds
    return _name(getattr(module, "dtype", None))


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _autocast(module: nn.Module) -> str:
    """The number format into which `torch.autocast` turns computations, "" outside it."""
    if not torch._C._is_any_autocast_enabled():
        # diffusers looks through all modules for the device
        return ""
    device: Any = getattr(module, "device", torch.device("cpu"))
    kind = device.type if device.type != "meta" else "cpu"
    return _name(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""


def differences(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """What differs between the fingerprint of a calibration, `expected`, and that of another set-up, in words."""
    flat_expected, flat_found = flattened(expected), flattened(found)
    for name, what in (("version", "fingerprints"), ("records", "norms")):
        if flat_expected.get(name, 1) != flat_found.get(name, 1):
            # nothing else can be compared
            return [
                f"its {what} are of version {flat_expected.get(name, 1)}, this library's of {flat_found.get(name, 1)}"
            ]
    unlike = [
        key for key in sorted(flat_expected.keys() | flat_found.keys()) if flat_expected.get(key) != flat_found.get(key)
    ]
    sections: dict[str, list[str]] = {}
    for key in unlike:
        sections.setdefault(key.partition(".")[0], []).append(key)
    words = []
    for section, keys in sections.items():
        words += [
            f"{key} is {_short(flat_found.get(key))}, calibrated {_short(flat_expected.get(key))}"
            for key in keys[:_SHOWN]
        ]
        if len(keys) > _SHOWN:
            words.append(f"{len(keys) - _SHOWN} more in {section}")
    return words


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
    """A value for a message; of a hash its first digits, of a long text its beginning."""
    text = str(value)
    digits = text.removeprefix("sha256:")
    if isinstance(value, str) and len(digits) == 64:
        return f"{digits[:12]}…"
    return text if len(text) <= 120 else f"{text[:119]}…"
