"""Settings of the whole process that maps change while they are computed: one thread at a time, and put back after."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any, NamedTuple

import torch

ALONE = RLock()
"""Held by the thread that has changed settings of the process."""


@contextmanager
def eagerly() -> Iterator[None]:
    """Run without compiled code."""
    # torch reads the present stance when a new one is made, so the lock comes first
    with ALONE, torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def whole_floats() -> Iterator[bool]:
    """Run without TF32, whose ten bits of mantissa are too few for a finite difference; yields whether it was on.

    torch has two ways to say so and refuses to read the older one while the newer one says something else. So the older
    one is used for as long as it can be read, and other threads can go on reading it.
    """
    with ALONE:
        before = _values()
        try:
            # an older setting that cannot be read could not be put back
            if before.cudnn is not None:
                torch.backends.cudnn.allow_tf32 = False
            if before.products is not None:
                torch.set_float32_matmul_precision("highest")
            for place in _operators():
                if place.fp32_precision not in ("ieee", "none"):
                    place.fp32_precision = "ieee"
            yield "tf32" in before.operators
        finally:
            _restore(before)


class _Values(NamedTuple):
    """The settings: of cuDNN and of matrix products in the older way, None where torch refuses to say, and by operator."""

    cudnn: bool | None
    products: str | None
    operators: list[str]


def _operators() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


def _values() -> _Values:
    cudnn = products = None
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    return _Values(cudnn, products, [place.fp32_precision for place in _operators()])


def _restore(values: _Values) -> None:
    with suppress(RuntimeError):
        if values.cudnn is not None:
            torch.backends.cudnn.allow_tf32 = values.cudnn
        if values.products is not None:
            torch.set_float32_matmul_precision(values.products)
    for place, value in zip(_operators(), values.operators, strict=True):
        if place.fp32_precision != value:
            place.fp32_precision = value
