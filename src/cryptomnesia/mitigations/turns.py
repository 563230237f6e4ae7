"""Several captions take turns in the run of one image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from cryptomnesia.mitigations.base import Correction
from cryptomnesia.pipelines.inputs import Inputs, input_rows, same, together


@dataclass
class Turns(Correction):
    """Gives every image another conditioning at every evaluation, one of several in turn.

    Attributes:
        parts: of every image, the conditioning of one image each, from the first evaluation of a run.
    """

    parts: Sequence[Sequence[Inputs]]
    _names: frozenset[str] = field(default=frozenset(), init=False)

    @property
    def fits(self) -> bool:
        """Whether the parts of all images fit into one batch, whatever their turn is."""
        every = [part for parts in self.parts for part in parts]
        return not every or reduce(together, every) is not None

    def condition(self, index: int, inputs: Inputs) -> Inputs:
        """The conditioning of the parts whose turn it is."""
        if index == 0:
            # what the captions decide, masks of their padding for instance; the rest may depend on the evaluation
            self._names = frozenset(
                name
                for row, parts in enumerate(self.parts)
                for part in parts
                for name, value in part.items()
                if not name.startswith("_") and not same(value, input_rows(inputs, [row]).get(name))
            )
        new: Any = reduce(together, [parts[index % len(parts)] for parts in self.parts])
        return {**inputs, **{name: new[name] for name in self._names}}
