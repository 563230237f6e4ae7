"""Make a flagged image again, from the same noise where that is known, without the words that bring the memory back.

Where the conditional distribution has collapsed onto one picture, no change of norms or of guidance brings another one:
the caption itself has to change. Usually one or two of its words carry the memory. To find them, the first evaluations
of a run are computed for the caption without each of its words, and their scores are compared: those of
`early-detail`, or of `drift` where that does not work. The word whose absence lowers the score most is dropped, and the
image is made again. This is repeated, at most `most` times, until the image is no longer flagged. The rest of the
caption, the seed and the settings stay.

Only the text of the prompt changes, so this works with every family that takes captions and with every solver. An image
that is not flagged is never touched. `cryptomnesia.words` says what a word is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Mitigation, Remade, Studio, withheld
from cryptomnesia.mitigations.captions import candidates, lacking, texts_of
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.verdicts import Verdict

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.pipelines.setup import Setup

PROBES = ("early-detail", "drift")
"""Detectors that compare captions; the first that works in the set-up does."""


@dataclass(frozen=True)
class Rephrasing(Mitigation):
    """How to look for the words to drop.

    Attributes:
        probe: evaluations after which the captions without a word are compared; more where the detector that compares
            them has no score so early.
        most: words to drop at most.
    """

    probe: int = 2
    most: int = 3

    name = "rephrasing"  # type: ignore[override]
    summary = "The same seed again, without the words of the caption that bring the memory back."
    source = "this library"
    use_when = (
        "A caption gives the same picture again whatever is done to the norms of its run, and you may return an image "
        "of a shorter caption. Only flagged images are made again, so it helps no more than the detector catches."
    )
    avoid_when = (
        "The prompt must stay as the user wrote it; use `partial-captions`, or the policy `regenerate` or "
        "`block`. It reads the text of the prompt: images of calls with `prompt_embeds` alone are withheld."
    )

    def __post_init__(self) -> None:
        """Reject numbers with which nothing is compared or dropped."""
        for name in ("probe", "most"):
            if getattr(self, name) < 1:
                raise UsageError(f"got {name}={getattr(self, name)} for rephrasing; give at least 1")

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, of which some are left out."""
        return frozenset({"captions"})

    def cost(self, setup: "Setup") -> float:
        """One run without a word and, for ten words, the first evaluations of a run without it."""
        return setup.sampling.steps + 10.0 * self.probe

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make images from the same noise with fewer words, until they are clean or no more words may be dropped."""
        texts = [texts_of(image.call) for image in flagged]
        dropped: list[list[str]] = [[] for _ in flagged]
        p_values = [image.verdict.p_value for image in flagged]
        done: dict[int, Remade] = {}
        for _ in range(self.most):
            tried = {
                row: found
                for row in range(len(flagged))
                if row not in done and texts[row] and (found := candidates(texts[row]["prompt"], dropped[row]))
            }
            if not tried:
                break
            for row, word in self._best(flagged, dropped, tried, studio).items():
                dropped[row].append(word)
            calls = [lacking(flagged[row].call, dropped[row]) for row in tried]
            output, verdicts = studio.make(calls)
            for place, (row, verdict) in enumerate(zip(tried, verdicts, strict=True)):
                p_values[row] = verdict.p_value
                if verdict.clean:
                    done[row] = Remade(_mitigated(flagged[row], dropped[row], verdict.p_value), output, place)
        for row, image in enumerate(flagged):
            if row not in done:
                lost = ", ".join(dropped[row])
                why = f"without {lost} still p = {p_values[row]:.3g}" if lost else "no words to leave out"
                done[row] = Remade(withheld(replace(image.verdict, dropped=tuple(dropped[row])), why))
        return [done[row] for row in range(len(flagged))]

    def _best(
        self, flagged: Sequence[Flagged], dropped: Sequence[list[str]], tried: Mapping[int, list[str]], studio: Studio
    ) -> dict[int, str]:
        """For every image the word without which the score of the first evaluations is lowest.

        Args:
            flagged: the images.
            dropped: the words that are left out already, for every image.
            tried: number of an image → its words that could be dropped next.
            studio: makes runs.
        """
        # whatever flags images, these detectors tell captions apart after so few evaluations
        detector: Detector = studio.setup.first_accepted("detector", PROBES)
        evaluations = max(self.probe, detector.earliest(len(studio.references.timesteps)))
        pairs = [(row, word) for row, possible in tried.items() for word in possible]
        best: dict[int, tuple[float, str]] = {}
        for start in range(0, len(pairs), studio.batch):
            part = pairs[start : start + studio.batch]
            calls = [lacking(flagged[row].call, [*dropped[row], word]) for row, word in part]
            scores = detector.running(studio.first(calls, evaluations, keep=()), studio.references)
            for (row, word), score in zip(part, scores[:, -1].nan_to_num(nan=torch.inf).tolist(), strict=True):
                if row not in best or score < best[row][0]:
                    best[row] = score, word
        return {row: word for row, (_, word) in best.items()}


def _mitigated(image: Flagged, dropped: Sequence[str], p_value: float) -> Verdict:
    """The verdict on an image that is returned, made without the dropped words."""
    reason = f"{image.verdict.reason}; without {', '.join(dropped)} p = {p_value:.3g}"
    return replace(image.verdict, dropped=tuple(dropped), action="mitigated", reason=reason)
