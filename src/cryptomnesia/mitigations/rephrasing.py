"""Make a flagged image again, from the same noise where that is known, without the words that bring the memory back.

Where the conditional distribution has collapsed onto one image, no change of norms or of guidance
brings another one: the caption itself has to change. Usually a word or two of it carry the
memory. They are found by leaving each word out in turn and looking at the detector's score after the first
evaluations (at drift's, where the detector is the mean of a map); the one whose absence lowers it most is dropped, and
the image made again. That is repeated, at most `most` times, until the image is not flagged any more. The rest of the
caption, seed and settings stay.

It works on the text of the prompt, so on every family and with every solver, and an image that is not
flagged is never touched.
"""

from dataclasses import dataclass

from cryptomnesia.errors import UsageError


@dataclass(frozen=True)
class Rephrasing:
    """How to look for the words to drop.

    Attributes:
        probe: evaluations after which the captions with a word left out are compared; two, the first at which the
            estimate can have moved, find the word as well as more do (benchmarks/rephrasing.py).
        most: words to drop at most.
        batch: captions to compare in one call of the pipeline.
    """

    probe: int = 2
    most: int = 3
    batch: int = 8

    def __post_init__(self) -> None:
        """Reject numbers that look at nothing."""
        for name in ("probe", "most", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"got {name}={getattr(self, name)} for rephrasing; give at least 1")


def candidates(text: str, dropped: list[str]) -> list[str]:
    """The words of `text` that could be dropped next, each once, in order; none if but one is left."""
    left = list(dict.fromkeys(word for word in text.split() if word not in dropped))
    return left if len(left) > 1 else []


def without(text: str, dropped: list[str]) -> str:
    """`text` without every occurrence of the dropped words."""
    return " ".join(word for word in text.split() if word not in dropped)
