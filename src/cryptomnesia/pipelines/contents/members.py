"""What an object holds under which names, kept to see whether it still holds the very same.

A comparison takes a small part of the time of a look at everything. It says nothing about what changes inside the
values: whoever keeps them sees to it that they cannot change, or that such a change does not count.
"""

from collections.abc import Mapping
from operator import is_
from typing import Any


class Members:
    """Names and values, in their order."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        """Keep names and values; while they are kept, no other object can take the place of one in memory."""
        self._names = [*members]
        self._values = [*members.values()]

    def holds(self, members: Mapping[str, Any]) -> bool:
        """Whether these are the same names in the same order, with the very same values."""
        return self._names == [*members] and all(map(is_, self._values, members.values()))
