"""Calls of a pipeline whose images are judged, and flagged images made again under a rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.scores import Calibration
from cryptomnesia.detectors import Drift, Stability
from cryptomnesia.guarding.calls import merged, prompt_of
from cryptomnesia.mitigations import Correction, Rephrasing, Rule, StabilityRule
from cryptomnesia.mitigations.rephrasing import candidates, without
from cryptomnesia.tracing.watching import watch

Action = Literal["none", "mitigated", "withheld", "regenerated"]

SEVERITIES = ("none", "mild", "strong")

PROMPTS = ("prompt", "prompt_2", "prompt_3")


@dataclass(frozen=True)
class Verdict:
    """What a guard found out about one image of a call, and what it did.

    Attributes:
        image: its place in the call's output.
        prompt: its caption, None if there was none in words.
        score: the detector's score of the image as first generated; NaN when it could not tell. Of a run that was
            corrected while it went on, stability's is that of the updates the solver proposed, any other that of the
            corrected run, whose p-value then bounds no error.
        p_value: conformal p-value of the score, NaN likewise.
        flagged: whether the p-value is at most the guard's false-positive rate.
        crossed: of a flagged image, the evaluation, from 0, at which the running score was first flagged, against
            the references' scores at the same place.
        reason: what was found and done, in words.
        severity: of the correction: `none`, `mild` or `strong`.
        corrected: the evaluations at which the run was corrected.
        dropped: the words that were left out of the prompt.
        retried: p-values of the images generated after the first one. Theirs, and that of a rephrased image, is that
            of the best of several: it says that the score is ordinary by then, and bounds no error.
        action: what became of the image: `none`, `mitigated`, `withheld` or `regenerated`.
    """

    image: int
    prompt: str | None
    score: float
    p_value: float
    flagged: bool
    crossed: int | None
    reason: str
    severity: str = SEVERITIES[0]
    corrected: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()
    retried: tuple[float, ...] = ()
    action: Action = "none"

    @property
    def clean(self) -> bool:
        """Whether the image could be judged and was not flagged."""
        return not self.flagged and self.p_value == self.p_value


@dataclass(frozen=True)
class Remade:
    """What became of an image that was not shown as it was.

    Attributes:
        verdict: with what was done.
        output: of the pipeline's call that made another one; None if nothing may be shown.
        place: of the image in that output.
    """

    verdict: Verdict
    output: Any = None
    place: int = 0


class Maker:
    """Makes images with a pipeline's own call, judges them, and makes flagged ones again under a rule.

    Attributes:
        kind: the pipeline's class, whose `__call__` makes the images.
    """

    def __init__(self, pipe: Any, calibration: Calibration, judge: Judge, rule: Rule, *, early: bool = False) -> None:
        """Remember what belongs together.

        Args:
            pipe: the pipeline.
            calibration: of its setup.
            judge: of every image.
            rule: of the mitigation.
            early: whether a call ends once the judge has flagged all of its images.
        """
        self.kind: type[Any] = type(pipe)
        self._pipe = pipe
        self._calibration = calibration
        self._judge = judge
        self._rule = rule
        self._early = early

    def generate(self, arguments: Mapping[str, Any], *, correct: bool = False) -> tuple[Any, list[Verdict]]:
        """Output and verdicts of a call of the original pipeline.

        Args:
            arguments: of the call.
            correct: under the rule, if it is one that corrects runs.
        """
        rule = self._rule
        correction = (
            Correction(self._calibration.reference, rule) if correct and isinstance(rule, StabilityRule) else None
        )
        stopped = False

        def stop_early(done: int) -> None:
            nonlocal stopped
            planned = len(self._calibration.reference.delta.mean)
            if done == self._judge.last + 1 < planned and all(each.flagged for each in self._judge(seen.trajectory)):
                stopped = self._pipe._interrupt = True

        with watch(
            self._pipe,
            steer=None if correction is None else correction.steer,
            after_step=stop_early if self._early and correction is None else None,
            signals=self._judge.signals,
        ) as seen:
            output = self.kind.__call__(self._pipe, **arguments)
        if stopped:
            self._pipe._interrupt = False
        trajectory = seen.trajectory if correction is None else correction.as_proposed(seen.trajectory)
        verdicts = [
            Verdict(image=row, prompt=prompt_of(arguments, row), **vars(each))
            for row, each in enumerate(self._judge(trajectory))
        ]
        if correction is None:
            return output, verdicts
        telling = not isinstance(self._judge.detector, Stability)
        return output, [_told(each, correction, telling=telling) for each in verdicts]

    def mitigate(self, calls: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> list[Remade]:
        """Make flagged images again under the rule, all of them together.

        Args:
            calls: for each image the arguments of a call of the pipeline that makes it alone: `prompt` a list of one,
                `generator` in the state that gave its noise.
            verdicts: on the images as they were.
        """
        if isinstance(self._rule, Rephrasing):
            return self._rephrase(calls, verdicts)
        if not calls:
            return []
        output, again = self.generate(merged(calls), correct=True)
        done = []
        for place, (verdict, now) in enumerate(zip(verdicts, again, strict=True)):
            told = replace(verdict, severity=now.severity, corrected=now.corrected)
            if now.action == "mitigated":
                told = replace(told, action="mitigated", reason=f"{told.reason}; mitigated")
                done.append(Remade(told, output, place))
            else:
                done.append(Remade(withheld(told, uncorrected(now))))
        return done

    def _rephrase(self, calls: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> list[Remade]:
        """The same noise with fewer words, until an image is clean or no more may be dropped."""
        assert isinstance(self._rule, Rephrasing)
        texts = [
            {name: value[0] for name, value in call.items() if name in PROMPTS and value is not None} for call in calls
        ]
        dropped: list[list[str]] = [[] for _ in calls]
        p_values = [each.p_value for each in verdicts]
        done: dict[int, Remade] = {}
        for _ in range(self._rule.most):
            words = {
                row: found
                for row in range(len(calls))
                if row not in done and texts[row] and (found := candidates(texts[row]["prompt"], dropped[row]))
            }
            if not words:
                break
            for row, word in self._best(calls, texts, dropped, words).items():
                dropped[row].append(word)
            output, again = self.generate(merged([_reworded(calls[row], texts[row], dropped[row]) for row in words]))
            for place, (row, now) in enumerate(zip(words, again, strict=True)):
                p_values[row] = now.p_value
                if now.clean:
                    reason = f"{verdicts[row].reason}; without {', '.join(dropped[row])} p = {now.p_value:.3g}"
                    told = replace(verdicts[row], dropped=tuple(dropped[row]), action="mitigated", reason=reason)
                    done[row] = Remade(told, output, place)
        for row, verdict in enumerate(verdicts):
            if row not in done:
                lost = ", ".join(dropped[row])
                why = f"without {lost} still p = {p_values[row]:.3g}" if lost else "no words to leave out"
                done[row] = Remade(withheld(replace(verdict, dropped=tuple(dropped[row])), why))
        return [done[row] for row in range(len(calls))]

    def _best(
        self,
        calls: Sequence[dict[str, Any]],
        texts: Sequence[dict[str, str]],
        dropped: Sequence[list[str]],
        words: Mapping[int, list[str]],
    ) -> dict[int, str]:
        """For every row of `words` the one without which the score after the rule's first evaluations is lowest."""
        assert isinstance(self._rule, Rephrasing)
        # a map would have to be made without every word
        detector = Drift(self._calibration.reference) if self._judge.signals else self._judge.detector
        evaluations = min(max(self._rule.probe, detector.earliest), self._judge.last + 1)

        def stop(done: int) -> None:
            if done == evaluations:
                self._pipe._interrupt = True

        tried = [(row, word) for row, own in words.items() for word in own]
        best: dict[int, tuple[float, str]] = {}
        for start in range(0, len(tried), self._rule.batch):
            some = tried[start : start + self._rule.batch]
            each = [_reworded(calls[row], texts[row], [*dropped[row], word]) for row, word in some]
            arguments = {name: value for name, value in merged(each).items() if not name.startswith("callback")}
            with watch(self._pipe, after_step=stop) as seen:
                self.kind.__call__(self._pipe, **{**arguments, "output_type": "latent"})
            self._pipe._interrupt = False
            scores = detector.running(seen.trajectory)[:, evaluations - 1].nan_to_num(nan=torch.inf)
            for (row, word), score in zip(some, scores.tolist(), strict=True):
                if row not in best or score < best[row][0]:
                    best[row] = score, word
        return {row: word for row, (_, word) in best.items()}


def uncorrected(verdict: Verdict) -> str:
    """Why an image is not shown although a rule was at work on its run."""
    if not verdict.flagged:
        return ""
    return "still flagged after correction" if verdict.corrected else "the rule corrected nothing"


def _told(verdict: Verdict, correction: Correction, *, telling: bool) -> Verdict:
    """The verdict with what a rule did.

    The corrected updates are the rule's work: what looks at them, stability, is not `telling` whether it helped. A run
    that cannot be judged is not mended by a correction.
    """
    helped = verdict.clean or (verdict.flagged and not telling)
    corrected = tuple(correction.active[verdict.image].nonzero().flatten().tolist())
    return replace(
        verdict,
        severity=SEVERITIES[int(correction.severity[verdict.image])],
        corrected=corrected,
        action="mitigated" if corrected and helped else "none",
    )


def _reworded(call: dict[str, Any], texts: dict[str, str], dropped: list[str]) -> dict[str, Any]:
    """A call without some words of its prompts."""
    return {**call, **{name: [without(text, dropped)] for name, text in texts.items()}}


def withheld(verdict: Verdict, why: str = "") -> Verdict:
    """The verdict on an image that is not shown."""
    return replace(verdict, action="withheld", reason="; ".join(filter(None, (verdict.reason, why, "withheld"))))
