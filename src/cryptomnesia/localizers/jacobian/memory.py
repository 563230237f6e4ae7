"""The memory that a computation takes."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryptomnesia.localizers.jacobian.process import eagerly


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes that the tensors made by `call` take at any moment, on all devices together.

    Tensors that existed before, such as weights, do not count, nor does memory that a kernel allocates and frees by
    itself. Compiled networks run uncompiled during the measurement, which takes as much memory or more.
    """
    # the tensors of compiled code are not dispatched; the stance holds for all threads
    with eagerly(), _LiveBytes() as live:
        call()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts a storage from the operator that made it until nothing refers to it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._live: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # a view shares the storage of the tensor that it views
        known = {storage._cdata for storage in _storages((args, kwargs))} | self._live
        for storage in _storages(result):
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._live.add(storage._cdata)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _gone(self, place: int, size: int) -> None:
        self._live.remove(place)
        self._now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors in nested values."""
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
