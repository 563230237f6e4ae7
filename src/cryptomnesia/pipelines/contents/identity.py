"""What a value, a function or an object is, as JSON values: equal for equal behaviour, in every process.

A function or class of a library is known by its name. One of the user's own is also known by its compiled code, its
defaults and the constants that it refers to, so that an edited one is another one. Whatever may change while a
pipeline runs, or has hidden contents, is refused. Its owner can say what it is: `cryptomnesia_fingerprint` is an
attribute of a function, a class or an object, a text that stands for it, "" for one that changes no picture.
"""

import builtins
import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.call import canonical

VOUCHED = "cryptomnesia_fingerprint"
"""Name of the attribute by which an object says what it is."""

LIBRARIES = frozenset(
    {
        "accelerate",
        "bitsandbytes",
        "cryptomnesia",
        "diffusers",
        "gguf",
        "huggingface_hub",
        "numpy",
        "optimum",
        "packaging",
        "peft",
        "safetensors",
        "tokenizers",
        "torch",
        "torchao",
        "torchvision",
        "tqdm",
        "transformers",
        "typing_extensions",
    }
)
"""Packages whose functions and classes are known by their names."""

_PLAIN = (bool, int, float, str)


def identity(place: str, value: Any, known: Mapping[int, str] | None = None) -> Any:
    """What a value is.

    Args:
        place: where it was found, for the message.
        value: a number, text, tensor, container, function, class or object.
        known: `id` of objects that are described elsewhere → their names.

    Raises:
        UsageError: for what cannot be told from something else.
    """
    return _Identity(place, known or {}).of(value, ())


def qualified(kind: Any) -> str:
    """A class's or function's module and name; those of diffusers, torch and the like by their name alone."""
    name = getattr(kind, "__qualname__", None) or type(kind).__qualname__
    return name if in_library(kind) else f"{getattr(kind, '__module__', None)}.{name}"


def in_library(kind: Any) -> bool:
    """Whether a class or function is one of a library's; of a function that wraps another one, whether both are."""
    if not isinstance(kind, FunctionType):
        return _of_library(getattr(kind, "__module__", None))
    # `functools.wraps` gives a function of the user's own the module of the one that it wraps
    wrapped = vars(kind).get("__wrapped__")
    return _of_library(kind.__globals__.get("__name__")) and (wrapped is None or in_library(wrapped))


def _of_library(module: Any) -> bool:
    package = str(module or "builtins").partition(".")[0]
    return package in LIBRARIES or package in sys.stdlib_module_names


def runs(call: Any, known: Any) -> bool:
    """Whether a function is another one, or only libraries' wrappers are around it."""
    inner = inspect.unwrap(known)
    while call is not known and call is not inner:
        if not (isinstance(call, FunctionType) and _of_library(call.__globals__.get("__name__"))):
            return False
        call = vars(call).get("__wrapped__")
    return True


def code_of(kind: type) -> str:
    """SHA-256 of the compiled code of a class, and of those that it inherits from outside libraries."""
    digest = hashlib.sha256()
    for base in kind.__mro__:
        if in_library(base):
            continue
        for name, member in sorted(vars(base).items()):
            function = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)) or member)
            if isinstance(function, FunctionType):
                digest.update(f"{name} {_code(function.__code__)}".encode())
    return digest.hexdigest()


class _Identity:
    """One look at a value and all that it holds."""

    def __init__(self, place: str, known: Mapping[int, str]) -> None:
        self.place = place
        self.known = known

    def of(self, value: Any, within: tuple[int, ...]) -> Any:
        """What a value is that is held by the objects with the numbers `within`."""
        if value is None or type(value) in _PLAIN:
            return "nan" if value != value else value
        if id(value) in self.known:
            return self.known[id(value)]
        if id(value) in within:
            return "itself"
        within = (*within, id(value))
        vouched = getattr(value, VOUCHED, None)
        if isinstance(vouched, str):
            return vouched
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return self._numbers(value)
        if isinstance(value, enum.Enum):
            return f"{qualified(type(value))}.{value.name}"
        if isinstance(value, (torch.dtype, PurePath, *_PLAIN)):
            return str(value)
        if isinstance(value, torch.device):
            # pictures do not depend on it, up to rounding
            return "device"
        if isinstance(value, Mapping):
            return {str(key): self.of(item, within) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item, within) for item in value]
        if isinstance(value, set | frozenset):
            return sorted((self.of(item, within) for item in value), key=str)
        if isinstance(value, type):
            return qualified(value) if in_library(value) else f"{qualified(value)} {code_of(value)[:12]}"
        if callable(value) and (found := self._callable(value, within)) is not None:
            return found
        return self._object(value, within)

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, Tensor) and type(value) is not Tensor:
            value = value.detach().as_subclass(Tensor)
        if isinstance(value, Tensor) and value.is_meta:
            return f"tensor of shape {tuple(value.shape)}"
        return canonical(self.place, value)

    def _callable(self, value: Any, within: tuple[int, ...]) -> Any:
        if isinstance(value, functools.partial):
            held = [self.of(item, within) for item in (value.func, value.args, value.keywords)]
            return {"is": "partial", "function": held[0], "args": held[1], "keywords": held[2]}
        if isinstance(value, MethodType):
            return {"is": self.of(value.__func__, within), "of": self.of(value.__self__, within)}
        if isinstance(value, BuiltinFunctionType) or (type(value).__module__ == "builtins" and not _is_function(value)):
            return qualified(value)
        if _is_function(value):
            return self._function(value, within)
        return None

    def _function(self, function: FunctionType, within: tuple[int, ...]) -> Any:
        if in_library(function) and _found_by_name(function):
            return qualified(function)
        held = {
            name: self._constant(name, cell.cell_contents, function, within)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        }
        for name in names(function.__code__):
            value = function.__globals__.get(name)
            if value is None or type(value) in _PLAIN:
                held[name] = value
        defaults = self.of([function.__defaults__ or (), function.__kwdefaults__ or {}], within)
        about = f"{_code(function.__code__)} {sorted(held.items())} {defaults}"
        return f"{qualified(function)} {hashlib.sha256(about.encode()).hexdigest()[:12]}"

    def _constant(self, name: str, value: Any, function: Any, within: tuple[int, ...]) -> Any:
        """What a function holds in a variable of the function around it."""
        constant = value is None or isinstance(value, (*_PLAIN, tuple, type, torch.dtype, FunctionType, ModuleType))
        if constant or id(value) in self.known or isinstance(getattr(value, VOUCHED, None), str):
            return value.__name__ if isinstance(value, ModuleType) else self.of(value, within)
        raise self._refusal(f"the function {qualified(function)}, which holds {name} of type {type(value).__name__}")

    def _object(self, value: Any, within: tuple[int, ...]) -> Any:
        kind = type(value)
        if dataclasses.is_dataclass(value):
            held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif hasattr(value, "__dict__"):
            held = dict(vars(value))
        else:
            raise self._refusal(f"an object of type {qualified(kind)}")
        if in_library(kind):
            held = {name: item for name, item in held.items() if not name.startswith("_")}
            return {"is": qualified(kind), **{name: self.of(item, within) for name, item in held.items()}}
        code = {"code": code_of(kind)[:12]}
        return {"is": qualified(kind), **code, **{name: self.of(item, within) for name, item in held.items()}}

    def _refusal(self, what: str) -> UsageError:
        return UsageError(
            f"{self.place} is {what}, whose effect on pictures a fingerprint cannot hold; remove it, or say what it is "
            f"in its attribute {VOUCHED}, a text that is empty if it changes no picture"
        )


def _is_function(value: Any) -> bool:
    return isinstance(value, FunctionType)


def _found_by_name(function: FunctionType) -> bool:
    """Whether a function is what its module has under its name, and not one that another function made."""
    found: Any = sys.modules.get(function.__module__, builtins)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return inspect.unwrap(found) is inspect.unwrap(function) if callable(found) else False


def names(code: CodeType) -> Iterable[str]:
    """The names that compiled code uses, also in the functions inside it and as the texts that `getattr` is given."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)
        elif isinstance(constant, str):
            yield constant


def _code(code: CodeType) -> str:
    """SHA-256 of compiled code, without the lines and the file that it comes from."""
    constants = [
        _code(item)
        if isinstance(item, CodeType)
        else repr(sorted(map(repr, item)) if isinstance(item, frozenset) else item)
        for item in code.co_consts
    ]
    about = f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"
    return hashlib.sha256(about.encode()).hexdigest()
