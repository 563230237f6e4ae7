"""Settings of the process that maps change while they are computed.

One thread at a time changes them, and puts them back afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any, NamedTuple

import torch

ALONE = RLock()
"""Held by the thread that has changed settings of the process."""


@contextmanager
def eagerly() -> Iterator[None]:
    """Run without compiled code, in all threads."""
    # `set_stance` remembers the stance that it finds, so it is called after the lock is taken
    with ALONE, torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def whole_floats() -> Iterator[bool]:
    """Run without TF32, whose mantissa of ten bits is too short for finite differences; yields whether TF32 was on.

    torch has an older and a newer setting for this, and reading the older one raises an error while the newer one
    contradicts it. So the older one is set wherever it can be read, and other threads can go on reading it.
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
    """Values of the settings.

    Attributes:
        cudnn: the older setting of cuDNN, None if torch refuses to read it.
        products: the older setting of matrix products, None if torch refuses to read it.
        operators: the newer settings, by operator.
    """

    cudnn: bool | None
    products: str | None
    operators: list[str]


def _operators() -> tuple[Any, ...]:
    """Where torch keeps the newer settings."""
    backends: Any = torch.backends
    return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


def _values() -> _Values:
    """Read the present values of all settings."""
    cudnn = products = None
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    return _Values(cudnn, products, [place.fp32_precision for place in _operators()])


def _restore(values: _Values) -> None:
    """Set the values that were there before."""
    with suppress(RuntimeError):
        if values.cudnn is not None:
            torch.backends.cudnn.allow_tf32 = values.cudnn
        if values.products is not None:
            torch.set_float32_matmul_precision(values.products)
    for place, value in zip(_operators(), values.operators, strict=True):
        if place.fp32_precision != value:
            place.fp32_precision = value
