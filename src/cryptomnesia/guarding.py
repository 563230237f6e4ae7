"""Guard a pipeline: judge every image that it makes, and do about it what a policy says.

The user's own pipeline stays in use. While a guard is attached the pipeline is an instance of a subclass of its
class with the same name, whose `__call__` runs the original under `watch`, judges what came out and,
where the policy says so, withholds images, makes them again or has the run corrected. Nothing global
is touched, so pipelines that are guarded in different threads do not see each other.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import repeat
from typing import Any, Literal, get_args

import torch
from torch import nn

from cryptomnesia.adapters import adapter_for
from cryptomnesia.calibrate import Calibration, weights_digests
from cryptomnesia.calls import Noise, merged, prompt_of, replaced, single
from cryptomnesia.detectors import Stability
from cryptomnesia.errors import UsageError
from cryptomnesia.judging import Judge, Judgement
from cryptomnesia.mitigations import Correction, Rephrasing, Rule, StabilityRule, default_rule
from cryptomnesia.mitigations.rephrasing import candidates, without
from cryptomnesia.solver import check_steerable
from cryptomnesia.trajectory import watch

Policy = Literal["observe", "mitigate", "block", "regenerate"]
"""`observe`: say so. `mitigate`: apply the rule. `block`: return a black image instead. `regenerate`: try other seeds,
at most `retries`, then mitigate."""

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
            corrected while it went on, stability's is that of the updates the solver proposed.
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


class Guard:
    """A pipeline's guard: attach it for as long as a service runs, or use it as a context manager.

    Attributes:
        verdicts: one per image of the newest call.

    Example:
        with guard(pipe, calibration, policy="block") as guarding:
            image = pipe("a red circle on a blue ground", guidance_scale=1.5).images[0]
        guarding.verdicts[0].p_value
    """

    def __init__(
        self,
        pipe: Any,
        calibration: Calibration,
        *,
        policy: Policy = "observe",
        detector: str = "drift",
        rate: float = 0.01,
        rule: Rule | None = None,
        decide_by: int | None = None,
        retries: int = 3,
        on_verdict: Callable[[Verdict], None] | None = None,
    ) -> None:
        """See that everything fits together; nothing is attached yet.

        Args:
            pipe: a pipeline of a known family.
            calibration: of this setup; calls with other settings are refused.
            policy: what to do about flagged images.
            detector: one of `cryptomnesia.detectors.DETECTORS`.
            rate: false-positive rate at which an image is flagged.
            rule: of the mitigation: `Rephrasing`, the default where there are prompts, makes flagged images
                again without the words that bring the memory back; `StabilityRule`, the published one, corrects
                the run itself.
            decide_by: judge every image after this many evaluations rather than at the end. When all images of a
                call are flagged then and would not be returned, the rest of the run is not computed.
            retries: other seeds to try under `regenerate`.
            on_verdict: called with every verdict, before the call returns.

        Raises:
            UsageError: saying what does not fit.
        """
        if policy not in get_args(Policy):
            raise UsageError(f"got the unknown policy {policy!r}; known are {', '.join(get_args(Policy))}")
        if retries < 1:
            raise UsageError(f"got {retries} retries; give at least 1, or another policy than regenerate")
        prompted = adapter_for(pipe).conditional
        rule = rule or default_rule(conditional=prompted)
        if isinstance(rule, Rephrasing) and not prompted:
            raise UsageError(f"a {type(pipe).__name__} has no prompt to rephrase; give rule=StabilityRule()")
        if isinstance(rule, StabilityRule) and policy in ("mitigate", "regenerate"):
            check_steerable(pipe.scheduler)
        self.pipe = pipe
        self.calibration = calibration
        self.policy = policy
        self.rule = rule
        self.retries = retries
        self.on_verdict = on_verdict
        self.verdicts: tuple[Verdict, ...] = ()
        self._judge = Judge(calibration, detector, rate, decide_by=decide_by)
        self._early = decide_by is not None and policy != "observe"
        self._weights = weights_digests(pipe)
        calibration.check(pipe, calibration.sampling, self._weights)
        self._kind: type[Any] = type(pipe)
        self._parts = _networks(pipe)

    def attach(self) -> "Guard":
        """Guard every call of the pipeline from now on.

        Raises:
            UsageError: if the pipeline is guarded already.
        """
        kind = type(self.pipe)
        if hasattr(kind, "guarded_by"):
            raise UsageError("the pipeline is guarded already; detach that guard first")
        guarding = self

        @wraps(kind.__call__)
        def __call__(called: Any, *args: Any, **kwargs: Any) -> Any:
            # a copy of the pipeline is another one
            return guarding._call(args, kwargs) if called is guarding.pipe else kind.__call__(called, *args, **kwargs)

        names = {"__call__": __call__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        self.pipe.__class__ = type(kind.__name__, (kind,), {**names, "guarded_by": self})
        self._kind = kind
        return self

    def detach(self) -> None:
        """Leave the pipeline as it was; does nothing if the guard is not attached."""
        if getattr(type(self.pipe), "guarded_by", None) is self:
            self.pipe.__class__ = self._kind

    def __enter__(self) -> "Guard":
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = self._arguments(args, kwargs)
        self.verdicts = ()
        noise = Noise(arguments)
        output, verdicts = self._generate(arguments, correct=self.policy == "mitigate")
        open_rows = [
            row
            for row, each in enumerate(verdicts)
            if not (each.clean or each.action == "mitigated" or self.policy == "observe")
        ]
        alone = [single(arguments, row) for row in open_rows]
        found = [verdicts[row] for row in open_rows]
        if self.policy == "regenerate":
            done = [self._regenerate(*each) for each in zip(alone, repeat(noise), found)]
        elif self.policy == "mitigate" and isinstance(self.rule, Rephrasing):
            own = [noise.of(row, alone=len(verdicts) == 1) for row in open_rows]
            done = self.mitigate([{**one, **its} for one, its in zip(alone, own, strict=True)], found)
        else:
            why = _uncorrected if self.policy == "mitigate" else (lambda _: "")
            done = [Remade(_withheld(each, why(each))) for each in found]
        for row, remade in zip(open_rows, done, strict=True):
            verdicts[row] = remade.verdict
            output = replaced(output, row, remade.output, remade.place)
        self.verdicts = tuple(verdicts)
        if self.on_verdict is not None:
            for verdict in verdicts:
                self.on_verdict(verdict)
        return output

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's arguments by name, seen to fit the calibration."""
        signature = inspect.signature(self._kind.__call__)
        given = dict(signature.bind(self.pipe, *args, **kwargs).arguments)
        given.pop("self", None)
        given |= given.pop("kwargs", {})
        defaults = {name: each.default for name, each in signature.parameters.items()}
        others = [name for name, part in _networks(self.pipe).items() if self._parts.get(name) is not part]
        if others:
            raise UsageError(
                f"the pipeline's {', '.join(others)} was replaced after its guard was made; make a new guard"
            )
        self.calibration.check(self.pipe, adapter_for(self.pipe).sampling(given, defaults), self._weights)
        return given

    def _generate(self, arguments: Mapping[str, Any], *, correct: bool = False) -> tuple[Any, list[Verdict]]:
        """Output and verdicts of a call of the original pipeline.

        Args:
            arguments: of the call.
            correct: under the rule, if it is one that corrects runs.
        """
        rule = self.rule
        correction = (
            Correction(self.calibration.reference, rule) if correct and isinstance(rule, StabilityRule) else None
        )
        stopped = False

        def stop_early(done: int) -> None:
            nonlocal stopped
            planned = len(self.calibration.reference.delta.mean)
            if done == self._judge.last + 1 < planned and all(each.flagged for each in self._judge(seen.trajectory)):
                stopped = self.pipe._interrupt = True

        with watch(
            self.pipe,
            steer=None if correction is None else correction.steer,
            after_step=stop_early if self._early and correction is None else None,
        ) as seen:
            output = self._kind.__call__(self.pipe, **arguments)
        if stopped:
            self.pipe._interrupt = False
        trajectory = seen.trajectory if correction is None else correction.as_proposed(seen.trajectory)
        verdicts = [
            Verdict(image=row, prompt=prompt_of(arguments, row), **vars(each))
            for row, each in enumerate(self._judge(trajectory))
        ]
        if correction is None:
            return output, verdicts
        # the corrected updates are the rule's work, so what looks at them cannot tell whether it helped
        telling = not isinstance(self._judge.detector, Stability)
        after = self._judge(seen.trajectory) if telling else [None] * len(verdicts)
        return output, [_told(each, correction, now) for each, now in zip(verdicts, after, strict=True)]

    def _regenerate(self, alone: dict[str, Any], noise: Noise, verdict: Verdict) -> "Remade":
        """Other seeds for one image, then mitigation."""
        for attempt in range(1, self.retries + 1):
            output, (again,) = self._generate({**alone, **noise.other(verdict.image, attempt)})
            verdict = replace(verdict, retried=(*verdict.retried, again.p_value))
            if again.clean:
                reason = f"{verdict.reason}; seed {attempt} after it has p = {again.p_value:.3g}"
                return Remade(replace(verdict, action="regenerated", reason=reason), output)
        verdict = replace(verdict, reason=f"{verdict.reason}; {self.retries} other seeds were no better")
        return self.mitigate([{**alone, **noise.other(verdict.image, self.retries)}], [verdict])[0]

    def mitigate(self, calls: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> list["Remade"]:
        """Make flagged images again under the rule, all of them together.

        Args:
            calls: for each image the arguments of a call of the pipeline that makes it alone: `prompt` a list of one,
                `generator` in the state that gave its noise.
            verdicts: on the images as they were.
        """
        if isinstance(self.rule, Rephrasing):
            return self._rephrase(calls, verdicts)
        if not calls:
            return []
        output, again = self._generate(merged(calls), correct=True)
        done = []
        for place, (verdict, now) in enumerate(zip(verdicts, again, strict=True)):
            told = replace(verdict, severity=now.severity, corrected=now.corrected)
            if now.action == "mitigated":
                told = replace(told, action="mitigated", reason=f"{told.reason}; mitigated")
                done.append(Remade(told, output, place))
            else:
                done.append(Remade(_withheld(told, _uncorrected(now))))
        return done

    def _rephrase(self, calls: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> list["Remade"]:
        """The same noise with fewer words, until an image is clean or no more may be dropped."""
        assert isinstance(self.rule, Rephrasing)
        texts = [
            {name: value[0] for name, value in call.items() if name in PROMPTS and value is not None} for call in calls
        ]
        dropped: list[list[str]] = [[] for _ in calls]
        p_values = [each.p_value for each in verdicts]
        done: dict[int, Remade] = {}
        for _ in range(self.rule.most):
            words = {
                row: found
                for row in range(len(calls))
                if row not in done and texts[row] and (found := candidates(texts[row]["prompt"], dropped[row]))
            }
            if not words:
                break
            for row, word in self._best(calls, texts, dropped, words).items():
                dropped[row].append(word)
            output, again = self._generate(merged([_reworded(calls[row], texts[row], dropped[row]) for row in words]))
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
                done[row] = Remade(_withheld(replace(verdict, dropped=tuple(dropped[row])), why))
        return [done[row] for row in range(len(calls))]

    def _best(
        self,
        calls: Sequence[dict[str, Any]],
        texts: Sequence[dict[str, str]],
        dropped: Sequence[list[str]],
        words: Mapping[int, list[str]],
    ) -> dict[int, str]:
        """For every row of `words` the one without which the score after the rule's first evaluations is lowest."""
        assert isinstance(self.rule, Rephrasing)
        evaluations = min(self.rule.probe, self._judge.last + 1)

        def stop(done: int) -> None:
            if done == evaluations:
                self.pipe._interrupt = True

        tried = [(row, word) for row, own in words.items() for word in own]
        best: dict[int, tuple[float, str]] = {}
        for start in range(0, len(tried), self.rule.batch):
            some = tried[start : start + self.rule.batch]
            each = [_reworded(calls[row], texts[row], [*dropped[row], word]) for row, word in some]
            arguments = {name: value for name, value in merged(each).items() if not name.startswith("callback")}
            with watch(self.pipe, after_step=stop) as seen:
                self._kind.__call__(self.pipe, **{**arguments, "output_type": "latent"})
            self.pipe._interrupt = False
            scores = self._judge.detector.running(seen.trajectory)[:, evaluations - 1].nan_to_num(nan=torch.inf)
            for (row, word), score in zip(some, scores.tolist(), strict=True):
                if row not in best or score < best[row][0]:
                    best[row] = score, word
        return {row: word for row, (_, word) in best.items()}


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


guard = Guard
"""`Guard` where it stands in a `with` statement: a verb, like `watch` and `stabilize`."""


def _uncorrected(verdict: Verdict) -> str:
    """Why an image is not shown although a rule was at work on its run."""
    if not verdict.flagged:
        return ""
    return "still flagged after correction" if verdict.corrected else "the rule corrected nothing"


def _told(verdict: Verdict, correction: Correction, after: Judgement | None) -> Verdict:
    """The verdict with what a rule did; `after` is on the corrected run as it is, where that tells whether it helped.

    A run that cannot be judged is not mended by a correction.
    """
    known = verdict.clean or verdict.flagged
    helped = known if after is None else after.p_value == after.p_value and not after.flagged
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


def _withheld(verdict: Verdict, why: str = "") -> Verdict:
    """The verdict on an image that is not shown."""
    return replace(verdict, action="withheld", reason="; ".join(filter(None, (verdict.reason, why, "withheld"))))


def _networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
