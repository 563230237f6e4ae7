"""Which functions only observe: a hook that counts, collects or prints what passes is no part of a set-up.

A function is an observer if its compiled code proves it: it returns nothing, writes to nothing that it was given, and
uses no names but those below, none of which changes a tensor. What it holds from outside has to be what its name says:
a function of the user's own that is called `norm` may do anything. Whatever is not proved may change the picture.
"""

import builtins
import dis
import sys
from collections import deque
from itertools import pairwise
from queue import Queue
from types import CodeType, FunctionType, ModuleType
from typing import Any

from cryptomnesia.pipelines.contents.identity import in_library

_COLLECTING = frozenset({"add", "append", "appendleft", "extend", "fail", "put", "put_nowait", "print"})
"""Functions and methods that return nothing."""

_READING = frozenset(
    "T Tensor abs all any bool cat chunk clone cpu detach device dict double dtype enumerate flatten float get "
    "get_ident int isfinite isinf isinstance isnan item items keys len list max mean min monotonic name ndim norm "
    "now numel numpy perf_counter permute pytest range repr reshape sample shape size split squeeze stack std str "
    "sum time to tolist torch transpose tuple type unsqueeze values view zip".split()
)
"""Names of functions, methods, attributes and modules that change nothing that they are given."""

_MODULES = ("pytest", "time", "torch")
"""The modules among them."""

_COLLECTIONS = (list, set, deque, Queue, int, float)
"""What a function may count in or collect into; classes that are derived from these may do something else."""

_CONSTANTS = (*_COLLECTIONS, bool, str, type(None))
"""What a function may hold beside that, without a name that says what it is."""

_METHODS = ("LOAD_METHOD", "LOAD_ATTR")

_UNKNOWN = object()
"""What stands for a name that is defined nowhere."""

_OUTSIDE = ("LOAD_DEREF", "LOAD_GLOBAL")
"""How a function loads what it has not been given."""

_COUNTING = ("STORE_DEREF", "STORE_GLOBAL")

_WRITING = ("STORE_SUBSCR", "STORE_ATTR", "STORE_SLICE", "DELETE_", "IMPORT_", "YIELD", "MAKE_FUNCTION")


def observes(function: Any) -> bool:
    """Whether a function is proved to change nothing that it is given, and to return nothing."""
    if not isinstance(function, FunctionType):
        return False
    code = function.__code__
    steps = list(dis.get_instructions(code))
    outside = {step.argval for step in steps if step.opname.endswith("_GLOBAL")}
    attributes = {step.argval for step in steps if step.opname in _METHODS} | {*code.co_names} - outside
    if not attributes <= _COLLECTING | _READING:
        return False
    values = {name: function.__globals__.get(name, getattr(builtins, name, _UNKNOWN)) for name in outside}
    return all(map(_is_known, values, values.values())) and _holds_known(function) and _proved(code)


def _holds_known(function: FunctionType) -> bool:
    """Whether what a function holds of the function around it, and in its defaults, can change nothing."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        # not assigned yet
        return False
    held = zip(function.__code__.co_freevars, cells, strict=True)
    return all(type(value) in _CONSTANTS for value in defaults) and all(
        type(value) in _CONSTANTS or _is_known(name, value) for name, value in held
    )


def _is_known(name: str, value: Any) -> bool:
    """Whether a value from outside is a collection, or the library's own function, class or module of its name."""
    if type(value) in _COLLECTIONS:
        return True
    if name not in _COLLECTING | _READING or value is _UNKNOWN:
        return False
    if isinstance(value, ModuleType):
        return name in _MODULES and value is sys.modules.get(name)
    return callable(value) and getattr(value, "__name__", "") == name and in_library(value)


def _proved(code: CodeType) -> bool:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("NOP", "CACHE", "RESUME", "PRECALL")]
    if any(step.opname.startswith(_WRITING) for step in steps):
        return False
    if any(isinstance(constant, tuple) and "out" in constant for constant in code.co_consts):
        # torch.abs(output, out=output)
        return False
    for step, following in pairwise(steps):
        if following.opname in _METHODS and following.argval in _COLLECTING and step.opname not in _OUTSIDE:
            # an argument may be a list
            return False
        # a variable of the function around it may be counted up, but an argument not changed in place
        if step.opname == "BINARY_OP" and step.argrepr.endswith("=") and following.opname not in _COUNTING:
            return False
    before = zip([None, *steps], steps, strict=False)
    returns = [(last, step) for last, step in before if step.opname in ("RETURN_VALUE", "RETURN_CONST")]
    return all(_is_none(step if last is None or step.opname == "RETURN_CONST" else last) for last, step in returns) or (
        _is_one_call(steps)
    )


def _is_none(step: dis.Instruction) -> bool:
    return step.opname in ("LOAD_CONST", "RETURN_CONST") and step.argval is None


def _is_one_call(steps: list[dis.Instruction]) -> bool:
    """Whether a function consists of one call of something that returns nothing, as a short lambda does."""
    if len(steps) < 2 or not steps[-2].opname.startswith("CALL") or any("JUMP" in step.opname for step in steps):
        return False
    loaded = [step for step in steps if step.opname not in ("COPY_FREE_VARS", "PUSH_NULL")]
    if loaded[0].opname == "LOAD_GLOBAL" and loaded[0].argval in _COLLECTING:
        return True
    # what is called is loaded first
    return loaded[0].opname in _OUTSIDE and loaded[1].argval in _COLLECTING
