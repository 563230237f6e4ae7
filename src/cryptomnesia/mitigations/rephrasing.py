"""Make a flagged image again, from the same noise where that is known, without the words that bring the memory back.

Where the conditional distribution has collapsed onto one picture, no change of norms or of guidance brings another one:
the caption itself has to change. Usually a word or two of it carry the memory. They are found by leaving each word out in
turn and looking at the detector's score after the first evaluations; the word whose absence lowers the score most is
dropped, and the image made again. This is repeated, at most `most` times, until the image is not flagged any more. The
rest of the caption, the seed and the settings stay.

It works on the text of the prompt, so on every family and with every solver. An image that is not flagged is never
touched.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from cryptomnesia.detectors import Drift
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Mitigation, Remade, Studio, withheld
from cryptomnesia.registry import Requirement
from cryptomnesia.verdicts import Verdict

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup

_PROMPTS = ("prompt", "prompt_2", "prompt_3")

_WORD = re.compile(
    # scripts that are written without spaces count by the character: Han, Hiragana, Katakana, Thai, Lao, Myanmar, Khmer
    r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
    r"|[^\W\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
    r"(?:[\w'’\-]*\w)?"
)
"""A word: letters and digits, with apostrophes and hyphens inside."""


@dataclass(frozen=True)
class Rephrasing(Mitigation):
    """How to look for the words to drop.

    Attributes:
        probe: evaluations after which the captions with a word left out are compared. Two, the first at which the
            estimate can have moved, find the word as well as more do (benchmarks/rephrasing.py).
        most: words to drop at most.
    """

    probe: int = 2
    most: int = 3

    name = "rephrasing"
    summary = "The same seed again, without the words of the caption that bring the memory back."
    source = "this library"
    use_when = (
        "A caption brings one picture back whatever its norms are, and you may show an image of a shorter caption."
    )
    avoid_when = (
        "The prompt must stay as the user wrote it; use `stability` as mitigation, or the policy `regenerate` or "
        "`block`. It reads the text of the prompt, so images of calls with `prompt_embeds` only are withheld."
    )

    def __post_init__(self) -> None:
        """Reject numbers with which nothing is compared or dropped."""
        for name in ("probe", "most"):
            if getattr(self, name) < 1:
                raise UsageError(f"got {name}={getattr(self, name)} for rephrasing; give at least 1")

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words."""
        return frozenset({"captions"})

    def cost(self, setup: "Setup") -> float:
        """A run without a word, and the first evaluations of a run without each of ten words."""
        return setup.sampling.steps + 10.0 * self.probe

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """The same noise with fewer words, until an image is clean or no more words may be dropped."""
        texts = [_texts(image.call) for image in flagged]
        dropped: list[list[str]] = [[] for _ in flagged]
        p_values = [image.verdict.p_value for image in flagged]
        done: dict[int, Remade] = {}
        for _ in range(self.most):
            words = {
                row: found
                for row in range(len(flagged))
                if row not in done and texts[row] and (found := candidates(texts[row]["prompt"], dropped[row]))
            }
            if not words:
                break
            for row, word in self._best(flagged, texts, dropped, words, studio).items():
                dropped[row].append(word)
            calls = [_reworded(flagged[row].call, texts[row], dropped[row]) for row in words]
            output, verdicts = studio.make(calls)
            for place, (row, verdict) in enumerate(zip(words, verdicts, strict=True)):
                p_values[row] = verdict.p_value
                if verdict.clean:
                    done[row] = Remade(_shown(flagged[row], dropped[row], verdict.p_value), output, place)
        for row, image in enumerate(flagged):
            if row not in done:
                lost = ", ".join(dropped[row])
                why = f"without {lost} still p = {p_values[row]:.3g}" if lost else "no words to leave out"
                done[row] = Remade(withheld(replace(image.verdict, dropped=tuple(dropped[row])), why))
        return [done[row] for row in range(len(flagged))]

    def _best(
        self,
        flagged: Sequence[Flagged],
        texts: Sequence[Mapping[str, str]],
        dropped: Sequence[list[str]],
        words: Mapping[int, list[str]],
        studio: Studio,
    ) -> dict[int, str]:
        """For every row of `words` the word without which the score after the first evaluations is lowest."""
        # a detector that asks the network for more would have to do so without every word
        detector = Drift() if studio.detector.signals else studio.detector
        evaluations = max(self.probe, detector.earliest(len(studio.references.timesteps)))
        tried = [(row, word) for row, candidates_of_row in words.items() for word in candidates_of_row]
        best: dict[int, tuple[float, str]] = {}
        for start in range(0, len(tried), studio.batch):
            part = tried[start : start + studio.batch]
            calls = [_reworded(flagged[row].call, texts[row], [*dropped[row], word]) for row, word in part]
            scores = studio.first_scores(calls, evaluations, detector).nan_to_num(nan=torch.inf)
            for (row, word), score in zip(part, scores.tolist(), strict=True):
                if row not in best or score < best[row][0]:
                    best[row] = score, word
        return {row: word for row, (_, word) in best.items()}


def candidates(text: str, dropped: Sequence[str]) -> list[str]:
    """The words of `text` that could be dropped next, each once, in order; none if only one is left."""
    words = list(dict.fromkeys(word for word in _WORD.findall(text) if word not in dropped))
    return words if len(words) > 1 else []


def without(text: str, dropped: Sequence[str]) -> str:
    """`text` without every occurrence of the dropped words, and without the punctuation that they leave behind.

    Example:
        >>> without("a red cat, sitting (quietly), podonna", ["podonna", "cat"])
        'a red, sitting (quietly)'
    """
    lost = frozenset(dropped)
    text = _WORD.sub(lambda word: "" if word.group() in lost else word.group(), text)
    text = re.sub(r"\(\s*\)|\[\s*\]|\{\s*\}|[\"“«]\s*[\"”»]", "", text)
    text = re.sub(r"\s+([,.;:!?，。、；：！？)\]])", r"\1", text)
    text = re.sub(r"([,;:，、；：])(?:\s*[,;:，、；：])+", r"\1", text)
    text = re.sub(r"[,;:，、；：]\s*([.!?。！？])", r"\1", text)
    return re.sub(r"^[\s,;:，、；：]+|[\s,;:，、；：]+$", "", re.sub(r"\s{2,}", " ", text))


def _texts(call: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of a call that were given in words."""
    return {name: call[name][0] for name in _PROMPTS if call.get(name) is not None}


def _reworded(call: Mapping[str, Any], texts: Mapping[str, str], dropped: Sequence[str]) -> dict[str, Any]:
    """A call without some words of its prompts."""
    return {**call, **{name: [without(text, dropped)] for name, text in texts.items()}}


def _shown(image: Flagged, dropped: Sequence[str], p_value: float) -> Verdict:
    """The verdict on an image that is shown without some words."""
    reason = f"{image.verdict.reason}; without {', '.join(dropped)} p = {p_value:.3g}"
    return replace(image.verdict, dropped=tuple(dropped), action="mitigated", reason=reason)
