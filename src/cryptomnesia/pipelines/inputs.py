"""The conditioning of a network: everything that a call of it is given beside the noisy samples and the timestep.

Tensors have the images in their first dimension. What is the same for every image is `Shared`; a list with one item per
image is `Listed`; a tensor with the images in its second dimension is `Stacked`. Dictionaries, lists and tuples hold
any of these.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Any]
"""Conditioning as keyword arguments of the network. Names that begin with an underscore are notes of this library."""

CONTEXT = "_context"
"""Further channels or tokens that the network is given behind the noisy ones, (B, …): a mask, or a picture to edit."""

CONTROL = "_control"
"""Conditioning of a second network that reads the same noisy samples, as a dictionary."""

GRID = "_grid"
"""Height and width of packed latents in tokens, as `Shared`."""


@dataclass(frozen=True)
class Shared:
    """A value that is the same for every image."""

    value: Any

    def __getitem__(self, rows: Any) -> "Shared":
        """The same value, whatever images are asked for."""
        return self


@dataclass(frozen=True)
class Listed:
    """Values of B images in a list."""

    items: tuple[Any, ...]

    def __getitem__(self, rows: Any) -> "Listed":
        """The values of some of the images."""
        numbers = rows.tolist() if isinstance(rows, Tensor) else rows
        return Listed(self.items[numbers] if isinstance(numbers, slice) else tuple(self.items[row] for row in numbers))


@dataclass(frozen=True)
class Stacked:
    """Several tensors of B images in one, (n, B, …): the layers of a text encoder, for instance."""

    value: Tensor

    def __getitem__(self, rows: Any) -> "Stacked":
        """The values of some of the images."""
        return Stacked(self.value[:, rows])


def sorted_out(
    value: Any,
    images: int,
    *,
    name: str = "",
    shared: frozenset[str] = frozenset(),
    listed: frozenset[str] = frozenset(),
    stacked: frozenset[str] = frozenset(),
) -> Any:
    """An argument of a call with `images` samples in its batch, with wrappers where they belong.

    Args:
        value: of the argument.
        images: number of samples in the batch.
        name: of the argument.
        shared: names of arguments that are the same for every image, whatever their first dimension is.
        listed: names of arguments that are lists with one item per image.
        stacked: names of arguments with the images in their second dimension.
    """
    if name in shared:
        return Shared(value)
    if name in listed and isinstance(value, list | tuple) and len(value) == images:
        return Listed(tuple(value))
    if name in stacked and isinstance(value, Tensor):
        return Stacked(value)
    if isinstance(value, Tensor):
        return value if value.dim() > 0 and value.shape[0] == images else Shared(value)
    if isinstance(value, Mapping):
        return {key: sorted_out(item, images, name=key, shared=shared, listed=listed) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _like(value, (sorted_out(item, images, shared=shared, listed=listed) for item in value))
    return Shared(value)


def input_rows(inputs: Any, rows: Any) -> Any:
    """The conditioning of the images with the numbers `rows`, a list, a tensor or a slice."""
    return _every(lambda value: value[rows], inputs)


def plain(inputs: Inputs) -> dict[str, Any]:
    """The conditioning as the network takes it, without notes of this library."""
    return {name: _every(_unwrapped, value) for name, value in inputs.items() if not name.startswith("_")}


def together(first: Any, second: Any) -> Any:
    """Two conditionings of the same network in one batch, the images of the first one first.

    None if they do not fit into one batch, because captions have other lengths for instance.
    """
    if isinstance(first, Mapping):
        if not isinstance(second, Mapping) or first.keys() != second.keys():
            return None
        both = {name: together(value, second[name]) for name, value in first.items()}
        return None if any(value is None for value in both.values()) else both
    if isinstance(first, list | tuple):
        if not isinstance(second, list | tuple) or len(first) != len(second):
            return None
        items = [together(a, b) for a, b in zip(first, second, strict=True)]
        return None if any(item is None for item in items) else _like(first, items)
    if isinstance(first, Tensor):
        alike = isinstance(second, Tensor) and first.shape[1:] == second.shape[1:]
        return torch.cat([first, second]) if alike else None
    if isinstance(first, Listed):
        return Listed((*first.items, *second.items)) if isinstance(second, Listed) else None
    if isinstance(first, Stacked):
        alike = isinstance(second, Stacked) and first.value.shape[2:] == second.value.shape[2:]
        return Stacked(torch.cat([first.value, second.value], dim=1)) if alike else None
    return first if isinstance(second, Shared) and _equal(first.value, second.value) else None


def cloned(inputs: Any) -> Any:
    """A conditioning whose tensors are copies."""
    return _every(_cloned, inputs)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Listed):
        return Listed(tuple(_cloned(item) for item in value.items))
    return type(value)(_cloned(value.value)) if isinstance(value, Shared | Stacked) else value


def same(first: Any, second: Any) -> bool:
    """Whether two conditionings, or parts of them, are equal."""
    if isinstance(first, Mapping):
        return (
            isinstance(second, Mapping)
            and first.keys() == second.keys()
            and all(same(value, second[name]) for name, value in first.items())
        )
    if isinstance(first, Shared | Stacked):
        return type(first) is type(second) and _equal(first.value, second.value)
    if isinstance(first, Listed):
        return isinstance(second, Listed) and _equal(first.items, second.items)
    return _equal(first, second)


def carried(inputs: Inputs, run: Inputs) -> Inputs:
    """Conditioning of other captions, with what an evaluation of a run was given beside its captions.

    This is the picture behind the noisy samples, which may have been encoded at random, and how strongly a second
    network acts, which may change during a run.
    """
    found = dict(inputs)
    if CONTEXT in inputs and CONTEXT in run:
        found[CONTEXT] = run[CONTEXT]
    if CONTROL in inputs and CONTROL in run:
        beside = ("controlnet_cond", "conditioning_scale")
        found[CONTROL] = {**inputs[CONTROL], **{name: run[CONTROL][name] for name in beside if name in run[CONTROL]}}
    return found


def _every(change: Callable[[Any], Any], value: Any) -> Any:
    """A conditioning in which every tensor and every wrapper is changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _every(change, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return _like(value, (_every(change, item) for item in value))
    return change(value)


def _like(value: list[Any] | tuple[Any, ...], items: Iterable[Any]) -> list[Any] | tuple[Any, ...]:
    """Items in a list or a tuple, as `value` is one: some networks tell them apart."""
    return list(items) if isinstance(value, list) else tuple(items)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, Listed):
        return list(value.items)
    return value.value if isinstance(value, Shared | Stacked) else value


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, Sequence) and isinstance(second, Sequence) and not isinstance(first, str):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return first is second or bool(first == second)


def unpacked(values: Tensor, inputs: Inputs) -> Tensor:
    """Values of latents as (B, C, h, w), also where they are packed as (B, tokens, channels).

    Args:
        values: one number for every entry of the latents.
        inputs: conditioning of the network, which tells where the tokens of packed latents are.
    """
    if values.dim() == 4:
        return values
    height, width = inputs[GRID].value
    # a token holds the 2×2 latents of C channels, channels first
    cells = values.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2))
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(values), -1, 2 * height, 2 * width)
