"""Random words or numbers in the caption (Somepalli et al., NeurIPS 2023, arXiv:2305.20086).

A caption that was seen often is remembered word by word. Words of the tokenizer's vocabulary, drawn at random, are
put between its words, or random numbers. The pipeline is given this caption in place of the user's, and the verdict
says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Prepared, Preparing, Studio
from cryptomnesia.mitigations.captions import draws_for, texts_of, worded
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.words import spans

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class RandomTokens(Preparing):
    """What is put into the caption.

    Attributes:
        count: how many words or numbers.
        kind: `words` or `numbers`, which are in 0 … 10⁶ − 1.
    """

    count: int = 4
    kind: Literal["words", "numbers"] = "words"

    name = "random-tokens"  # type: ignore[override]
    summary = "The same seed again, with random words in the caption."
    source = "arXiv:2305.20086"
    use_when = "You want a baseline. It takes the text of the prompt only, and costs nothing but the second run."
    avoid_when = "The prompt must stay as it is, or the picture has to show it: random words change the picture."

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, which are changed."""
        return frozenset({"captions"})

    def check(self, setup: "Setup") -> None:
        """Refuse settings that put nothing in, and a pipeline without a vocabulary.

        Raises:
            UsageError: naming them.
        """
        if self.count < 1 or self.kind not in ("words", "numbers"):
            raise UsageError(
                f"got count={self.count} and kind={self.kind!r} for {self.name}; give at least 1, words or numbers"
            )
        if self.kind == "words" and not _vocabulary(setup.pipe):
            raise UsageError(
                f"{self.name} draws words of a tokenizer, and a {type(setup.pipe).__name__} has none; give "
                "RandomTokens(kind='numbers')"
            )

    def cost(self, setup: "Setup") -> float:
        """One more run of the pipeline, in evaluations."""
        return float(setup.sampling.steps)

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Draw the words of every image."""
        vocabulary = _vocabulary(studio.setup.pipe) if self.kind == "words" else []
        calls, notes = [], []
        hopeless: dict[int, str] = {}
        for row, image in enumerate(flagged):
            draws = draws_for(image.call, self.name)
            added = [
                vocabulary[_below(len(vocabulary), draws)] if vocabulary else str(_below(10**6, draws))
                for _ in range(self.count)
            ]
            places = [_below(10**6, draws) for _ in added]
            calls.append(worded(image.call, lambda text, added=added, places=places: _with(text, added, places)))
            notes.append(f"with {', '.join(added)} in the caption")
            if not texts_of(image.call):
                hopeless[row] = "no caption in words"
        return Prepared(calls, None, notes, hopeless=hopeless)


def _below(limit: int, draws: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=draws))


def _with(text: str, added: Sequence[str], places: Sequence[int]) -> str:
    """A text with words before some of its words, or at its end."""
    for word, place in zip(added, places, strict=True):
        starts = [start for start, _ in spans(text)]
        at = [*starts, len(text)][place % (len(starts) + 1)]
        text = f"{text[:at]}{word} {text[at:]}" if at < len(text) else f"{text} {word}"
    return text


def _vocabulary(pipe: Any) -> list[str]:
    """The words of letters that are one token of the pipeline's first tokenizer, in the order of their numbers."""
    tokenizer = getattr(pipe, "tokenizer", None)
    vocabulary: Mapping[str, int] = getattr(tokenizer, "get_vocab", dict)()
    named = sorted((number, token.removesuffix("</w>").lstrip("▁Ġ")) for token, number in vocabulary.items())
    return [token for _, token in named if len(token) > 2 and token.isalpha()]
