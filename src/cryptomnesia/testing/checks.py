"""A named check of a method, and what the checks of all kinds of methods have in common."""

import dataclasses
import inspect
import math
import re
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.setups import SETUPS, halved

RELATIVE = 1e-3
"""Relative difference that batched arithmetic may make."""


class CheckError(AssertionError):
    """What a check found, in words."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of one method: call it, and it raises an error if the method fails it.

    A check that does not apply to the method raises `unittest.SkipTest`, which pytest counts as skipped.

    Attributes:
        name: what is checked, in words.
        body: the check itself.
        known: why the method is known to fail it, None if it is not. Such a check counts as skipped when it fails, and
            fails when it passes.
    """

    name: str
    body: Callable[[], None]
    known: str | None = None

    def __call__(self) -> None:
        """Run the check."""
        if self.known is None:
            self.body()
            return
        try:
            self.body()
        except unittest.SkipTest:
            raise
        except Exception as error:
            raise unittest.SkipTest(f"known failure: {self.known}") from error
        raise CheckError(f"{self.name!r} is a known failure ({self.known}), but it passes; take it off the list")

    def __str__(self) -> str:
        """The name, so that `ids=str` names the cases of a parametrized test."""
        return self.name


def run_checks(checks: Iterable[Check]) -> dict[str, str]:
    """Run all checks, without pytest.

    Returns:
        What became of each check by its name: `passed`, or why it was skipped.

    Raises:
        ExceptionGroup: with the errors of all checks that failed, each with the name of its check as a note.

    Example:
        >>> from cryptomnesia.testing import check_mitigation, run_checks
        >>> run_checks(check_mitigation("rephrasing"))["it describes itself"]
        'passed'
    """
    outcomes: dict[str, str] = {}
    errors: list[Exception] = []
    for check in checks:
        try:
            check()
        except unittest.SkipTest as skipped:
            outcomes[check.name] = f"skipped: {skipped}"
        except Exception as error:
            error.add_note(f"failed: {check.name}")
            errors.append(error)
        else:
            outcomes[check.name] = "passed"
    if errors:
        failed = ", ".join(note for error in errors for note in error.__notes__ if note.startswith("failed: "))
        raise ExceptionGroup(f"{len(errors)} of {len(errors) + len(outcomes)} checks {failed}", errors)
    return outcomes


def named_checks(bodies: Mapping[str, Callable[[], None]], known_failures: Mapping[str, str] | None) -> list[Check]:
    """The checks, those that are known to fail marked as such.

    Raises:
        UsageError: at once, for a known failure that is the name of no check.
    """
    known = known_failures or {}
    if unknown := sorted(known.keys() - bodies.keys()):
        raise UsageError(f"got the unknown check {unknown[0]!r} as a known failure; known are {', '.join(bodies)}")
    return [Check(name, body, known.get(name)) for name, body in bodies.items()]


def expect(condition: Any, message: str) -> None:
    """Fail with a message unless a condition holds.

    Raises:
        CheckError: with the message.
    """
    if not condition:
        raise CheckError(message)


def close(first: Tensor, second: Tensor, what: str, relative: float = RELATIVE) -> None:
    """Fail unless two tensors agree up to the rounding of batched arithmetic; NaN agrees with NaN.

    Raises:
        CheckError: saying what differs.
    """
    expect(first.shape == second.shape, f"{what}: shapes are {tuple(first.shape)} and {tuple(second.shape)}")
    first, second = first.double(), second.double()
    size = second[second.isfinite()].abs().max().item() if second.isfinite().any() else 0.0
    same = torch.isclose(first, second, rtol=relative, atol=relative * size + 1e-6, equal_nan=True)
    if not same.all():
        worst = (first - second).abs().nan_to_num(nan=math.inf).max()
        raise CheckError(f"{what}: {int((~same).sum())} of {same.numel()} values differ, by {worst:.3g} at most")


def setups_for(method: Any) -> Iterator[tuple[str, Setup]]:
    """The set-ups of `SETUPS` in which a method says that it works."""
    for name, make in SETUPS.items():
        setup = make()
        if setup.accepts(method):
            yield name, setup


def first_setup(method: Any, *, half: bool = False) -> Setup:
    """The first of these, made anew; its networks in half precision if asked for.

    Raises:
        CheckError: if there is none.
        unittest.SkipTest: if the method refuses half precision there.
    """
    for name, setup in setups_for(method):
        if half:
            halved(setup.pipe)
            if setup.checkpoint is not None:
                halved(setup.checkpoint)
            if not accepted(method, setup):
                raise unittest.SkipTest(f"{method.name} says that it does not work in half precision on {name}")
        return setup
    raise CheckError(f"{method.name} works in none of the set-ups {', '.join(SETUPS)}, so nothing can be checked")


def accepted(method: Any, setup: Setup) -> bool:
    """Whether a method works in a set-up; whatever it raises but a `UsageError` is a failure."""
    try:
        setup.check([method])
    except UsageError as error:
        expect(str(error), f"{method.name} refuses the set-up without a word; say what it lacks")
        return False
    return True


def check_description(method: Any) -> None:
    """Name, summary and description are there, and are the same for two equal methods.

    Raises:
        CheckError: otherwise.
    """
    expect(isinstance(method.name, str) and method.name, f"the name is {method.name!r}; give it a text")
    expect(
        isinstance(method.summary, str) and method.summary.strip(),
        f"{method.name} has no summary; say in one sentence what it does",
    )
    for attribute in ("source", "use_when", "avoid_when", "observes"):
        value = getattr(method, attribute)
        expect(isinstance(value, str), f"{attribute} of {method.name} is {value!r}; give it a text")
    known = {"guidance", "captions", "checkpoint"}
    expect(
        isinstance(method.requires, frozenset) and method.requires <= known,
        f"{method.name} requires {method.requires!r}; give it a frozenset of {', '.join(sorted(known))}",
    )
    words = method.describe()
    expect(isinstance(words, str) and words, f"{method.name} is described as {words!r}; give it a text")
    expect(
        words == method.describe() == deepcopy(method).describe(),
        f"{method.name} is described differently each time: {words}",
    )
    expect(
        not re.search(r" at 0x[0-9a-f]+>", words),
        f"{method.name} is described by an address in memory, which is another one in every process: {words}",
    )


def check_settings(method: Any, same_result: Callable[[Any, Any], bool] | None = None) -> None:
    """A changed setting changes the description, unless it changes no result.

    Args:
        method: whose settings are changed, one at a time.
        same_result: whether two methods give the same result. If None, only fields with `repr=False` may be left out of
            the description.

    Raises:
        CheckError: naming the setting.
    """
    hidden = {field.name for field in dataclasses.fields(method) if not field.repr} if _is_dataclass(method) else set()
    for setting, changed in variants(method):
        if changed.describe() != method.describe():
            continue
        same = setting in hidden if same_result is None else same_result(method, changed)
        expect(same, f"{method.name} is described alike with another {setting}: {method.describe()}")


def _is_dataclass(method: Any) -> bool:
    return dataclasses.is_dataclass(method)


def variants(method: Any) -> Iterator[tuple[str, Any]]:
    """The name of each setting, with the method as it is with another value of that setting."""
    hints = _hints(type(method))
    for name, value in _settings(method).items():
        for candidate in _other_values(value, hints.get(name)):
            # a value that the method refuses says nothing
            with suppress(Exception):
                changed = _changed(method, name, candidate)
                yield name, changed
                break


def _settings(method: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(method):
        return {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}
    try:
        parameters = inspect.signature(type(method)).parameters
    except ValueError:
        return {}
    missing = object()
    held = {name: getattr(method, name, getattr(method, f"_{name}", missing)) for name in parameters}
    return {name: value for name, value in held.items() if value is not missing}


def _changed(method: Any, name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(method):
        return dataclasses.replace(method, **{name: value})  # type: ignore[arg-type]
    return type(method)(**{**_settings(method), name: value})


def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    # annotations may name what is only imported for type checkers
    except Exception:
        return {}


def _other_values(value: Any, hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from (other for other in get_args(hint) if other != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, 2 * value)
    elif isinstance(value, float):
        yield from (1.5 * value + 0.1, 0.5 * value, value + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (changed for _, changed in variants(value))


def contents(value: Any, _seen: frozenset[int] = frozenset()) -> Any:
    """Everything that an object holds, as texts and tuples that can be compared."""
    if id(value) in _seen:
        return "…"
    inside = _seen | {id(value)}
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), str(value.dtype), value.detach().cpu().flatten().tolist()
    if isinstance(value, Mapping):
        return "mapping", tuple((repr(key), contents(item, inside)) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return type(value).__name__, tuple(contents(item, inside) for item in items)
    if isinstance(value, str | int | float | bool | None) or (callable(value) and not hasattr(value, "__dict__")):
        return repr(value)
    slots = [name for base in inspect.getmro(type(value)) for name in vars(base).get("__slots__", ())]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | dict(getattr(value, "__dict__", {}))
    return type(value).__qualname__, tuple((name, contents(item, inside)) for name, item in sorted(held.items()))


@contextmanager
def unchanged(method: Any) -> Iterator[None]:
    """Fail if the method holds something else at the end of the block than at its beginning.

    Raises:
        CheckError: naming the method.
    """
    before = contents(method)
    yield
    expect(
        contents(method) == before,
        f"{method.name} keeps something of its runs; a method holds its settings and nothing else, so that two calls "
        "cannot disturb each other",
    )
