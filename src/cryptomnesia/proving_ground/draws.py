"""Random numbers that are the same on every machine and with every version of NumPy."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_NAME_KEY = 4


class Draws:
    """Random numbers from raw PCG64 bits. NumPy guarantees that stream, but not the streams of its distributions."""

    def __init__(self, *key: int) -> None:
        """Start the stream that belongs to `key`, a tuple of non-negative integers."""
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self._bits.random_raw() >> 11) * 2.0**-53)

    def integer(self, n: int) -> int:
        """A number in 0 … n − 1."""
        return int(self.uniform() * n)

    def choice(self, items: Sequence[T]) -> T:
        """Draw one of `items`, all with the same probability."""
        return items[self.integer(len(items))]

    def sample(self, n: int, k: int) -> np.ndarray:
        """`k` different numbers of 0 … n − 1, in random order, shape (k,)."""
        order = np.argsort(self._bits.random_raw(n), kind="stable")
        return order[:k]


def invented_names(seed: int, count: int) -> list[str]:
    """`count` different names of three syllables, such as `velmora`."""
    draws, names = Draws(seed, _NAME_KEY), []
    while len(names) < count:
        name = "".join(draws.choice("bdfgklmnprstvz") + draws.choice("aeiou") for _ in range(2))
        name += draws.choice("lmnrs") + draws.choice("bdgkmntvz") + draws.choice(("a", "o", "is", "en"))
        if name not in names:
            names.append(name)
    return names
