"""What a fingerprint holds beside networks: of the scheduler, the tokenizers and the pipeline itself."""

import copy
import dis
import hashlib
import inspect
import json
import marshal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import own_class
from cryptomnesia.pipelines.contents.fresh import HARMLESS, same
from cryptomnesia.pipelines.contents.hooks import flat, is_own_method, patches
from cryptomnesia.pipelines.contents.identity import code_of, identity, in_library, names, qualified
from cryptomnesia.pipelines.rehearsal import asked

_VOCABULARIES: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()
"""Tokenizer → what shows that it has changed, and the digest of its vocabulary."""

_FRESH: WeakKeyDictionary[Any, tuple[type, bytes, Any]] = WeakKeyDictionary()
"""Scheduler → its class, the bytes of its configuration, and one that was made from these."""

_PROBES = ("A Red-Circle, 1984's", "naïve ÉCLAIR (3.5x)", "  two  spaces\n", "日本 😀", "<concept> #tag_x")
"""Texts in which tokenizers with the same vocabulary differ: case, accents, numbers, spaces, other scripts."""

_OF_A_RUN = frozenset(
    {"_begin_index", "_init_size", "_internal_dict", "_step_index", "noise_sampler", "sigma_data", "timestep_list"}
)
"""Attributes of schedulers that a run sets, beside those that the code of `step` sets."""

_STEPS = (4, 2)
"""Numbers of steps for which schedulers are compared; one for two steps takes no other number."""

_PROCESSING = (
    "size",
    "crop_size",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
)
"""What an image processor of transformers does."""


def scheduler_config(scheduler: Any, steps: int) -> dict[str, Any]:
    """A scheduler's configuration as a run of `steps` steps leaves it: some write into it what suits the number."""
    config = dict(scheduler.config)
    if 1 <= steps <= config.get("num_train_timesteps", 0):
        # a number that it refuses is reported by the run
        with suppress(Exception):
            config |= asked(scheduler, steps).config
    return {name: value for name, value in config.items() if not name.startswith("_")}


def scheduler_alterations(scheduler: Any, known: Mapping[int, str]) -> dict[str, Any]:
    """How a scheduler differs from one that is freshly made from its configuration: attribute → value.

    Both are set to the same timesteps before, so that nothing remains of a run.

    Raises:
        UsageError: for a scheduler that is altered in a way that cannot be told from another one.
    """
    kind = type(scheduler)
    found: dict[str, Any] = {} if in_library(kind) else {"class": f"{qualified(kind)} {code_of(kind)[:12]}"}
    found |= _patched("the scheduler's", kind, known)
    ours = copy.copy(scheduler)
    for name, value in list(vars(ours).items()):
        # a watch puts wrappers around methods, which observe
        while (observed := getattr(value, "observed", None)) is not None and observed[0] is value:
            value = observed[1]
        if callable(value) and hasattr(kind, name):
            delattr(ours, name)
            if not is_own_method(value, kind, name):
                found |= flat(name, identity(f"the scheduler's {name}", value, known))
    fresh = _fresh(scheduler, patched=bool(found))
    if fresh is None or not _begun(ours):
        if found:
            # a patched scheduler need not take timesteps in the usual way
            return found
        raise UsageError(f"the {qualified(kind)} cannot set its timesteps; check its configuration")
    of_a_run = _OF_A_RUN | _set_by_steps(kind)
    mine, usual = ({k: v for k, v in vars(one).items() if k not in of_a_run} for one in (ours, fresh))
    for name in sorted(mine.keys() | usual.keys()):
        value, before = mine.get(name), usual.get(name)
        if not (value is before or same(_number(value), _number(before))):
            found |= flat(name, identity(f"the scheduler's {name}", value, known))
    return found


def _fresh(scheduler: Any, *, patched: bool) -> Any:
    """A scheduler that is made from the configuration of another one, with its timesteps set; None if it sets none.

    It is kept as long as the other one is and has the same class and configuration, unless functions of the class come
    from outside.
    """
    kind, config = type(scheduler), scheduler.config
    try:
        # an equal number of another type has other bytes; a format without references, which equal values may differ in
        state = None if patched else marshal.dumps(dict(config), 2)
    except ValueError:
        state = None
    known = _FRESH.get(scheduler)
    if state is not None and known is not None and known[:2] == (kind, state):
        return known[2]
    made = kind.from_config(config)
    if not _begun(made):
        return None
    if state is not None:
        _FRESH[scheduler] = kind, state, made
    return made


def _number(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _begun(scheduler: Any) -> bool:
    """Set a few timesteps as a pipeline does; whether that worked."""
    shifting = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    for steps in _STEPS:
        with suppress(Exception):
            scheduler.set_timesteps(steps, **shifting)
            return True
    return False


@cache
def _set_by_steps(kind: type) -> frozenset[str]:
    """Names of the attributes that a scheduler's methods for taking a step set."""
    methods = [getattr(kind, name) for name in dir(kind) if name.startswith("step") or name == "scale_model_input"]
    return frozenset(
        instruction.argval
        for method in methods
        if inspect.isfunction(method)
        for instruction in dis.get_instructions(inspect.unwrap(method))
        if instruction.opname == "STORE_ATTR"
    )


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer makes of a caption: a digest, and the names of tokens that were added."""
    added = {str(token): number for token, number in tokenizer.get_added_vocab().items()}
    state = (len(tokenizer), sorted(added.items()), _stages(tokenizer))
    known = _VOCABULARIES.get(tokenizer)
    if known is None or known[0] != state:
        about = json.dumps([sorted(tokenizer.get_vocab().items()), [*_probed(tokenizer)]])
        known = _VOCABULARIES[tokenizer] = state, hashlib.sha256(about.encode()).hexdigest()
    special = {str(token) for token in tokenizer.all_special_tokens}
    names = sorted(added.keys() - special)
    settings = {name: getattr(tokenizer, name, None) for name in ("model_max_length", "padding_side", "pad_token_id")}
    found = {"vocabulary": known[1], **settings}
    if (side := getattr(tokenizer, "truncation_side", "right")) != "right":
        found["truncation_side"] = side
    return {**found, "added": names} if names else found


def same_vocabulary(tokenizer: Any, copied: Any) -> None:
    """Take the vocabulary of a fresh copy of a tokenizer as known if that of the tokenizer is.

    What shows that a vocabulary has changed is compared for the copy, too.
    """
    with suppress(TypeError):
        # some pipelines have a processor in the place of a tokenizer, which need not be hashable
        if (known := _VOCABULARIES.get(tokenizer)) is not None:
            _VOCABULARIES[copied] = known


def _stages(tokenizer: Any) -> list[bytes]:
    """What a tokenizer does to a text beside looking it up, which may be changed in place."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    stages = [getattr(backend, name, None) for name in ("normalizer", "pre_tokenizer", "post_processor")]
    try:
        return [b"" if stage is None else stage.__getstate__() for stage in stages]
    # stages that are written in Python have no state
    except Exception:
        return []


def _probed(tokenizer: Any) -> Iterator[Any]:
    """The tokens of some texts; the tokenizer's own padding and truncation, which another thread may use, stay."""
    backend = copy.deepcopy(getattr(tokenizer, "backend_tokenizer", None))
    if backend is None:
        yield from map(tokenizer.tokenize, _PROBES)
        return
    backend.no_padding()
    backend.no_truncation()
    for text in _PROBES:
        yield backend.encode(text).ids


def pipeline_identity(pipe: Any, known: Mapping[int, str]) -> dict[str, Any]:
    """What changes pictures in the pipeline itself: flags of its configuration, numbers, processors, own methods.

    Raises:
        UsageError: for what cannot be told from something else.
    """
    components = pipe.components
    config = getattr(pipe, "config", {})
    found: dict[str, Any] = {
        name: identity(f"the pipeline's {name}", value)
        for name, value in config.items()
        if name not in components and not name.startswith("_") and name != "requires_safety_checker"
    }
    kind = own_class(pipe)
    found |= _patched("the pipeline's", kind, known)
    read = _read_by(kind)
    for name, value in vars(pipe).items():
        place = f"the pipeline's {name}"
        if name in components or name in HARMLESS or not (read is None or name in read):
            continue
        if callable(value) and hasattr(kind, name):
            if not is_own_method(value, kind, name):
                found |= flat(name, identity(place, value, known))
        elif name.startswith("_") or isinstance(value, nn.Module):
            continue
        elif isinstance(getattr(value, "config", None), Mapping):
            found |= flat(name, _processor(place, value, known))
        else:
            found |= flat(name, identity(place, value, known))
    for name, part in _others(components).items():
        others = {number: word for number, word in known.items() if number != id(part)}
        held = {key: getattr(part, key) for key in _PROCESSING if in_library(type(part)) and hasattr(part, key)}
        found |= flat(name, identity(f"the pipeline's {name}", held or part, others))
    return dict(sorted(found.items()))


def _patched(place: str, kind: type, known: Mapping[int, str]) -> dict[str, Any]:
    """The functions from outside in a library's class, in those that it inherits from, and in their modules."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if in_library(base) and base is not object:
            for owner in (base, sys.modules[base.__module__]):
                found |= patches(f"{place} {owner.__name__}", owner, known)
    return found


@cache
def _read_by(kind: type) -> frozenset[str] | None:
    """The names that the code of a pipeline's class and its modules uses; None for a class of the user's own.

    Services give their pipelines attributes, a lock or a name, that no code of diffusers reads.
    """
    bases = [base for base in kind.__mro__ if base is not object]
    if not all(map(in_library, bases)):
        return None
    owners = [owner for base in bases for owner in (base, sys.modules[base.__module__])]
    members = [member for owner in owners for member in vars(owner).values()]
    functions = (inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member))) for member in members)
    return frozenset(
        name for function in functions if inspect.isfunction(function) for name in names(function.__code__)
    )


def _others(components: Mapping[str, Any]) -> dict[str, Any]:
    """The components that are neither networks nor tokenizers nor the scheduler.

    What looks at finished pictures is left out: a checker that is no network, and the processor that serves it.
    """
    left_out = {"scheduler", "safety_checker"}
    if components.get("image_encoder") is None:
        left_out.add("feature_extractor")
    return {
        name: part
        for name, part in components.items()
        if not (part is None or name in left_out or isinstance(part, nn.Module) or hasattr(part, "get_vocab"))
    }


def _processor(place: str, processor: Any, known: Mapping[int, str]) -> dict[str, Any]:
    """An image processor of diffusers: its class, and what is not the default in its configuration."""
    kind = type(processor)
    if not in_library(kind):
        return {"is": f"{qualified(kind)} {code_of(kind)[:12]}", **identity(place, dict(processor.config), known)}
    return {"is": qualified(kind), **identity(place, changed(processor), known)}


def changed(configured: Any) -> dict[str, Any]:
    """What differs in the configuration of an object of diffusers from the defaults of its class."""
    parameters = _parameters(type(configured).__init__)
    return {
        name: value
        for name, value in sorted(configured.config.items())
        if not name.startswith("_") and not (name in parameters and _listed(parameters[name].default) == _listed(value))
    }


@cache
def _parameters(constructor: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a constructor of diffusers, by name."""
    return inspect.signature(constructor).parameters


def _listed(value: Any) -> Any:
    """A sequence as a list: configurations that were saved have lists where those in memory have tuples."""
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return str(value) if isinstance(value, Tensor) else value
