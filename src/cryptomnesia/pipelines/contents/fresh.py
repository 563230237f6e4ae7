"""A network that is freshly made from the configuration of another one, and what is the same in both."""

import copy
import functools
import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cryptomnesia.pipelines.contents.identity import in_library

_FRESH: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module | None]] = WeakKeyDictionary()
"""Network → its configuration, and a network that was made from it."""

HARMLESS = frozenset(
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
        # shown only
        "extra_repr",
        # looked at below
        "forward",
    }
)

"""Attributes that change no picture, and those that are looked at elsewhere."""


class _WithoutMemory(TorchFunctionMode):
    """Inside the block, in this thread, tensors that are made empty take no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def fresh(network: nn.Module, config: Any) -> nn.Module | None:
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


def same(value: Any, before: Any, depth: int = 3) -> bool:
    """Whether an attribute is the same as that of a fresh module; nothing is the same as None."""
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        if value.shape != before.shape or before.is_meta != value.is_meta or value.is_complex() != before.is_complex():
            return False
        if value.dtype == before.dtype and value.device == before.device and torch.equal(value, before):
            return True
        # another processor may compute a constant with another rounding
        rounding = 2e-3 if 2 in (value.itemsize, before.itemsize) else 1e-5
        # rotary embeddings are complex
        wide = torch.complex128 if value.is_complex() else torch.float64
        both = [tensor.detach().to("cpu", wide) for tensor in (value, before)]
        return value.is_meta or torch.allclose(*both, rtol=rounding, atol=1e-6, equal_nan=True)
    if type(value) is not type(before) or isinstance(value, Tensor):
        return False
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return value == before or (value != value and before != before)
    if isinstance(value, list | tuple):
        return len(value) == len(before) and all(map(same, value, before))
    if isinstance(value, Mapping):
        return value.keys() == before.keys() and all(same(value[key], before[key]) for key in value)
    if isinstance(value, nn.Module):
        return depth > 0
    if inspect.ismethod(value):
        return value.__func__ is before.__func__
    if isinstance(value, FunctionType):
        return value.__code__ is before.__code__ and in_library(value)
    if isinstance(value, functools.partial):
        return value.func is before.func and same(value.args, before.args) and same(value.keywords, before.keywords)
    if depth and in_library(type(value)) and hasattr(value, "__dict__"):
        mine, others = ({k: v for k, v in vars(one).items() if k not in HARMLESS} for one in (value, before))
        return mine.keys() == others.keys() and all(same(mine[key], others[key], depth - 1) for key in mine)
    return bool(value is before or (value == before) is True)
