"""How much of a network's work a piece of code takes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Counting:
    """Counts the samples that a network evaluates inside a `with` block.

    Attributes:
        samples: that were evaluated so far; with guidance every image is one sample of each branch.
    """

    def __init__(self, network: nn.Module) -> None:
        """Count what `network` evaluates, in the block."""
        self.samples = 0
        self._network = network

    def __enter__(self) -> "Counting":
        self._hook = self._network.register_forward_hook(self._count, with_kwargs=True)
        return self

    def _count(self, _: nn.Module, args: Any, kwargs: Mapping[str, Any], __: Any) -> None:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > 1)
        self.samples += len(given)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
