"""Settings of the whole process that maps need for moments: one thread at a time has them, and puts them back."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch

ALONE = RLock()


@contextmanager
def eagerly() -> Iterator[None]:
    """Without compiled code."""
    # a stance is taken when it is made, so not before the lock is
    with ALONE, torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def whole_floats() -> Iterator[bool]:
    """Without TF32, whose ten bits a finite difference would consist of; yields whether it was on."""
    backends: Any = torch.backends
    places = backends.cudnn.conv, backends.cuda.matmul
    with ALONE:
        before = [place.fp32_precision for place in places]
        for place in places:
            place.fp32_precision = "ieee"
        try:
            yield "tf32" in before
        finally:
            for place, held in zip(places, before, strict=True):
                place.fp32_precision = held
