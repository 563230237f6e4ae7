"""Reorder: the same words in another order.

A picture that was seen often with one caption is remembered under that caption. The words alone, in another order, ask
for much the same content and may not bring the picture back. The caption is turned around: its words move forward by
one place, the first behind the last, until the image is not flagged any more or `most` orders were tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cryptomnesia import Mitigation
from cryptomnesia.mitigations import Flagged, Remade, Studio
from cryptomnesia.mitigations.base import withheld

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class Reorder(Mitigation):
    """The same noise and the same words, in another order.

    Attributes:
        most: orders to try, at most.
    """

    most: int = 2

    name = "reorder"
    summary = "The same seed and the same words, in another order."
    source = "cryptomnesia-example"
    use_when = "No word of the caption may be lost."
    avoid_when = "The order of the words matters; use `rephrasing`."
    requires = frozenset({"captions"})

    def cost(self, setup: "Setup") -> float:
        """One run per order."""
        return float(self.most * setup.sampling.steps)

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make the images again, all that are still flagged together, one order after the other."""
        done: dict[int, Remade] = {}
        for places in range(1, self.most + 1):
            calls = {
                row: call
                for row, image in enumerate(flagged)
                if row not in done and (call := _turned(image.call, places)) is not None
            }
            if not calls:
                break
            output, verdicts = studio.make(list(calls.values()))
            for place, (row, verdict) in enumerate(zip(calls, verdicts, strict=True)):
                # shown is only what was judged and not flagged
                if verdict.clean:
                    first = flagged[row].verdict
                    reason = f"{first.reason}; as {calls[row]['prompt'][0]!r} p = {verdict.p_value:.3g}"
                    done[row] = Remade(replace(first, action="mitigated", reason=reason), output, place)
        return [
            done.get(row) or Remade(withheld(image.verdict, "no other order of its words helped"))
            for row, image in enumerate(flagged)
        ]


def _turned(call: Mapping[str, Any], places: int) -> dict[str, Any] | None:
    """The call with its words moved by some places, None if there is no other order of them."""
    if call.get("prompt") is None:
        return None
    words = call["prompt"][0].split()
    return {**call, "prompt": [" ".join(words[places:] + words[:places])]} if len(words) > places else None
