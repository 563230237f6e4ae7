"""Searches of several images side by side: what they ask of the model is made for all of them in the same calls.

The search of one image is a generator. It yields the runs that it needs next, is sent them, and returns what it found.
So a search is written as if it were the only one.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptomnesia.mitigations.base import Studio
from cryptomnesia.mitigations.turns import Turns
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.tracing.trajectory import Trajectory

Found = TypeVar("Found")


@dataclass(frozen=True)
class Asked:
    """The first evaluations of runs.

    Attributes:
        calls: arguments of calls that make one image each.
        last: number of the last evaluation, whose tensors are kept.
        parts: conditioning that takes turns in each of the runs, None for that of the call.
    """

    calls: Sequence[Mapping[str, Any]]
    last: int
    parts: Sequence[Inputs] | None = None

    @property
    def kind(self) -> tuple[int, bool]:
        """Runs of the same kind can be made in the same call; cheap ones are smaller."""
        return self.last, self.parts is not None


Searching = Generator[Asked, list[Trajectory], Found]
"""Is sent one run of one image for every call that it asked for."""


def side_by_side(searches: Sequence[Searching[Found]], studio: Studio) -> list[Found]:
    """What every search finds, in the order of the searches."""
    found: dict[int, Found] = {}
    asked: dict[int, Asked] = {}

    def go_on(number: int, runs: Any) -> None:
        try:
            asked[number] = searches[number].send(runs)
        except StopIteration as end:
            asked.pop(number, None)
            found[number] = end.value

    for number in range(len(searches)):
        go_on(number, None)
    while asked:
        # the cheap ones first, so that the long runs are made for many images at once
        kind = min(one.kind for one in asked.values())
        together = {number: one for number, one in asked.items() if one.kind == kind}
        runs = _made(list(together.values()), studio)
        for number, one in together.items():
            go_on(number, [next(runs) for _ in one.calls])
    return [found[number] for number in range(len(searches))]


def _made(asked: Sequence[Asked], studio: Studio) -> Iterator[Trajectory]:
    """The runs of one kind that searches ask for, of one image each."""
    wanted = [(call, one.parts) for one in asked for call in one.calls]
    for start in range(0, len(wanted), studio.batch):
        batch = wanted[start : start + studio.batch]
        fits = Turns([parts for _, parts in batch if parts is not None]).fits
        for made in [batch] if fits else [[one] for one in batch]:
            turns = [parts for _, parts in made if parts is not None]
            calls = [call for call, _ in made]
            last = asked[0].last
            runs = studio.first(calls, last + 1, keep=(last,), correction=Turns(turns) if turns else None)
            yield from (runs.rows([row]) for row in range(len(calls)))
