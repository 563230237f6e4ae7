"""Guard a pipeline: judge every image that it makes, and do about it what a policy says.

The user's own pipeline stays in use. While a guard is attached the pipeline is an instance of a subclass of its
class with the same name, whose `__call__` runs the original under `watch`, judges what came out and,
where the policy says so, withholds images, makes them again or has the run corrected. Nothing global
is touched, so pipelines that are guarded in different threads do not see each other.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from cryptomnesia.adapters import adapter_for
from cryptomnesia.calibrate import Calibration, weights_digests
from cryptomnesia.detectors import DETECTORS
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations import Correction, Rephrasing, StabilityRule
from cryptomnesia.mitigations.rephrasing import candidates, without
from cryptomnesia.settings import PER_PROMPT
from cryptomnesia.solver import check_steerable
from cryptomnesia.trajectory import Trajectory, watch

Policy = Literal["observe", "mitigate", "block", "regenerate"]
"""`observe`: say so. `mitigate`: correct the run while it goes on. `block`: return a black image instead. `regenerate`:
try other seeds, at most `retries`, then mitigate."""

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
            corrected while it went on, that of the updates the solver proposed.
        p_value: conformal p-value of the score, NaN likewise.
        flagged: whether the p-value is at most the guard's false-positive rate.
        crossed: of a flagged image, the evaluation, from 0, at which the running score first passed the threshold.
        severity: of the correction: `none`, `mild` or `strong`.
        corrected: the evaluations at which the run was corrected.
        dropped: the words that were left out of the prompt.
        retried: p-values of the images generated after the first one.
        action: what became of the image: `none`, `mitigated`, `withheld` or `regenerated`.
        reason: why, in words.
    """

    image: int
    prompt: str | None
    score: float
    p_value: float
    flagged: bool
    crossed: int | None
    severity: str
    corrected: tuple[int, ...]
    dropped: tuple[str, ...]
    retried: tuple[float, ...]
    action: Action
    reason: str

    @property
    def clean(self) -> bool:
        """Whether the image could be judged and was not flagged."""
        return not self.flagged and self.p_value == self.p_value


@dataclass(frozen=True)
class _Run:
    """One call of the original pipeline."""

    output: Any
    verdicts: tuple[Verdict, ...]


class Guard:
    """A pipeline's guard; attach it for as long as a service runs, or use `guard` as a context manager.

    Attributes:
        verdicts: one per image of the newest call.
    """

    def __init__(
        self,
        pipe: Any,
        calibration: Calibration,
        *,
        policy: Policy = "observe",
        detector: str = "stability",
        rate: float = 0.01,
        rule: StabilityRule | Rephrasing | None = None,
        decide_by: int | None = None,
        retries: int = 3,
        on_verdict: Callable[[Verdict], None] | None = None,
    ) -> None:
        """See that everything fits together; nothing is attached yet.

        Args:
            pipe: a pipeline of a known family.
            calibration: of this setup; calls with other settings are refused.
            policy: what to do about flagged images.
            detector: one of `DETECTORS`.
            rate: false-positive rate at which an image is flagged.
            rule: of the mitigation: `Rephrasing`, the default where there are prompts, makes flagged images
                again without the words that bring the memory back; `StabilityRule`, the published one, corrects
                the run itself.
            decide_by: judge every image after this many evaluations rather than at the end. When all
                images of a call are flagged then and would not be returned, the rest of the
                run is not computed.
            retries: other seeds to try under `regenerate`.
            on_verdict: called with every verdict, before the call returns.

        Raises:
            UsageError: saying what does not fit.
        """
        if policy not in get_args(Policy):
            raise UsageError(f"got the unknown policy {policy!r}; known are {', '.join(get_args(Policy))}")
        if detector not in DETECTORS:
            raise UsageError(f"got the unknown detector {detector!r}; known are {', '.join(DETECTORS)}")
        if not 0 < rate < 1:
            raise UsageError(f"got the false-positive rate {rate:g}; give one between 0 and 1")
        if retries < 1:
            raise UsageError(f"got {retries} retries; give at least 1, or another policy than regenerate")
        evaluations = len(calibration.reference.delta.mean)
        if decide_by is not None and not 1 <= decide_by <= evaluations:
            raise UsageError(f"got decide_by={decide_by} of {evaluations} evaluations; give one in 1 … {evaluations}")
        adapter_for(pipe)
        prompted = adapter_for(pipe).conditional
        if rule is None:
            rule = Rephrasing() if prompted else StabilityRule()
        if isinstance(rule, Rephrasing) and not prompted:
            raise UsageError(f"a {type(pipe).__name__} has no prompt to rephrase; give rule=StabilityRule()")
        if isinstance(rule, StabilityRule) and policy in ("mitigate", "regenerate"):
            check_steerable(pipe.scheduler)
        self.pipe = pipe
        self.calibration = calibration
        self.policy = policy
        self.rate = rate
        self.rule = rule
        self.retries = retries
        self.on_verdict = on_verdict
        self.verdicts: tuple[Verdict, ...] = ()
        self._judge = DETECTORS[detector](calibration.reference)
        self._last = (decide_by or evaluations) - 1
        self._early = decide_by is not None and policy != "observe"
        self._threshold = calibration.threshold(detector, rate, self._last)
        self._weights = weights_digests(pipe)
        calibration.check(pipe, calibration.sampling, self._weights)
        self._kind: type[Any] | None = None
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
        if self._kind is not None:
            self.pipe.__class__ = self._kind
            self._kind = None

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._kind is not None
        arguments = self._arguments(args, kwargs)
        self.verdicts = ()
        first = _Noise(arguments)
        run = self._generate(arguments, correct=self.policy == "mitigate")
        first.images = len(run.verdicts)
        verdicts = [replace(each, prompt=_prompt(arguments, each.image)) for each in run.verdicts]
        images = _images(run.output)
        for row, verdict in enumerate(verdicts):
            if verdict.clean or verdict.corrected or self.policy == "observe":
                continue
            single = _single(arguments, row)
            image = None
            if self.policy == "block":
                verdict = replace(verdict, action="withheld", reason=f"{verdict.reason}; withheld")
            elif self.policy == "mitigate" and isinstance(self.rule, Rephrasing):
                verdict, image = self._rephrase({**single, **first.of(row)}, verdict)
            elif self.policy == "mitigate":
                reason = f"{verdict.reason}; the rule corrected nothing; withheld"
                verdict = replace(verdict, action="withheld", reason=reason)
            else:
                verdict, image = self._regenerate(single, first, verdict)
            verdicts[row] = verdict
            images = _with(images, row, image)
        self.verdicts = tuple(verdicts)
        if self.on_verdict is not None:
            for verdict in verdicts:
                self.on_verdict(verdict)
        return _with_images(run.output, images)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's arguments by name, seen to fit the calibration."""
        signature = inspect.signature(self._kind.__call__)  # type: ignore[union-attr]
        given = dict(signature.bind(self.pipe, *args, **kwargs).arguments)
        given.pop("self", None)
        given |= given.pop("kwargs", {})
        defaults = {name: each.default for name, each in signature.parameters.items()}
        replaced = [name for name, part in _networks(self.pipe).items() if self._parts.get(name) is not part]
        if replaced:
            raise UsageError(
                f"the pipeline's {', '.join(replaced)} was replaced after its guard was made; make a new guard"
            )
        self.calibration.check(self.pipe, adapter_for(self.pipe).sampling(given, defaults), self._weights)
        return given

    def _generate(self, arguments: Mapping[str, Any], *, correct: bool = False) -> _Run:
        """Call the original pipeline; with `correct`, under the rule if it is one that corrects runs."""
        assert self._kind is not None
        rule = self.rule
        correction = (
            Correction(self.calibration.reference, rule) if correct and isinstance(rule, StabilityRule) else None
        )

        stopped = False

        def stop_early(done: int) -> None:
            nonlocal stopped
            if done == self._last + 1 and done < len(self.calibration.reference.delta.mean):
                scores = self._judge.running(seen.trajectory)[:, self._last]
                if (scores >= self._threshold).all():
                    stopped = self.pipe._interrupt = True

        with watch(
            self.pipe,
            steer=None if correction is None else correction.steer,
            after_step=stop_early if self._early and correction is None else None,
        ) as seen:
            output = self._kind.__call__(self.pipe, **arguments)
        if stopped:
            self.pipe._interrupt = False
        trajectory = seen.trajectory
        if correction is not None:
            trajectory = correction.as_proposed(trajectory)
        return _Run(output, self._verdicts(trajectory, correction))

    def _verdicts(self, trajectory: Trajectory, correction: Correction | None) -> tuple[Verdict, ...]:
        running = self._judge.running(trajectory)
        count, taken = running.shape
        enough = taken > self._last
        scores = running[:, self._last].clone() if enough else torch.full((count,), torch.nan)
        # also where the latents broke after the decision, or behind what the detector looks at
        scores[~trajectory.norms.z.isfinite().all(dim=1)] = torch.nan
        p_values = self.calibration.p_value(self._judge.name, scores, self._last)
        active = torch.zeros(count, taken, dtype=torch.bool) if correction is None else correction.active
        severity = [0] * count if correction is None else correction.severity.tolist()
        verdicts = []
        for row in range(count):
            score, p = scores[row].item(), p_values[row].item()
            flagged = p <= self.rate
            corrected = tuple(active[row].nonzero().flatten().tolist())
            if flagged:
                reason = f"{self._judge.name} {score:.3g} has p = {p:.3g} ≤ {self.rate:g}"
            elif p == p:
                reason = f"{self._judge.name} {score:.3g} has p = {p:.3g} > {self.rate:g}"
            else:
                reason = f"could not tell: {self._unknown(trajectory, row)}"
            verdicts.append(
                Verdict(
                    image=row,
                    prompt=None,
                    score=score,
                    p_value=p,
                    flagged=flagged,
                    crossed=int((running[row, : self._last + 1] >= self._threshold).nonzero()[0]) if flagged else None,
                    severity=SEVERITIES[severity[row]],
                    corrected=corrected,
                    dropped=(),
                    retried=(),
                    action="mitigated" if corrected else "none",
                    reason=reason,
                )
            )
        return tuple(verdicts)

    def _unknown(self, trajectory: Trajectory, row: int) -> str:
        broken = (~trajectory.norms.z[row].isfinite()).nonzero().flatten().tolist()
        if broken:
            return f"the latents are not finite from evaluation {broken[0]} on; check the model's dtype"
        taken = trajectory.norms.z.shape[1]
        if taken <= self._last:
            return f"the run ended after {taken} of {self._last + 1} evaluations"
        return f"{self._judge.name} lacks its signal"

    def _regenerate(self, single: dict[str, Any], first: "_Noise", verdict: Verdict) -> tuple[Verdict, Any]:
        """Other seeds for one image, then mitigation: the new verdict and image, None if nothing may be shown."""
        retried: list[float] = []
        for attempt in range(1, self.retries + 1):
            run = self._generate({**single, **first.other(verdict.image, attempt)})
            (again,) = run.verdicts
            retried.append(again.p_value)
            if again.clean:
                reason = f"{verdict.reason}; seed {attempt} after it has p = {again.p_value:.3g}"
                done = replace(verdict, retried=tuple(retried), action="regenerated", reason=reason)
                return done, _images(run.output)[0]
        verdict = replace(
            verdict, retried=tuple(retried), reason=f"{verdict.reason}; {self.retries} other seeds were no better"
        )
        other = first.other(verdict.image, self.retries)
        if isinstance(self.rule, Rephrasing):
            return self._rephrase({**single, **other}, verdict)
        run = self._generate({**single, **other}, correct=True)
        (again,) = run.verdicts
        done = replace(verdict, severity=again.severity, corrected=again.corrected)
        if not again.corrected:
            # flagged, or not to be judged at all, and the rule has nothing to correct: nothing that may be shown
            reason = f"{verdict.reason}, the rule corrected nothing; withheld"
            return replace(done, action="withheld", reason=reason), None
        return replace(done, action="mitigated", reason=f"{verdict.reason}; mitigated"), _images(run.output)[0]

    def _rephrase(self, single: dict[str, Any], verdict: Verdict) -> tuple[Verdict, Any]:
        """The same noise with fewer words: the new verdict and image, None if nothing may be shown."""
        assert isinstance(self.rule, Rephrasing)
        texts = {name: value for name, value in single.items() if name in PROMPTS and value is not None}
        dropped: list[str] = []
        p_value = verdict.p_value
        while texts and len(dropped) < self.rule.most:
            words = candidates(texts["prompt"][0], dropped)
            if not words:
                break
            rest = [{name: without(text[0], [*dropped, word]) for name, text in texts.items()} for word in words]
            scores = self._probe(single, rest)
            dropped.append(words[int(scores.argmin())])
            fewer = {name: [without(text[0], dropped)] for name, text in texts.items()}
            run = self._generate({**single, **fewer, "generator": _replayed(single)})
            (again,) = run.verdicts
            p_value = again.p_value
            if again.clean:
                reason = f"{verdict.reason}; without {', '.join(dropped)} p = {p_value:.3g}"
                done = replace(verdict, dropped=tuple(dropped), action="mitigated", reason=reason)
                return done, _images(run.output)[0]
        why = f"without {', '.join(dropped)} still p = {p_value:.3g}" if dropped else "no words to leave out"
        reason = f"{verdict.reason}; {why}; withheld"
        return replace(verdict, dropped=tuple(dropped), action="withheld", reason=reason), None

    def _probe(self, single: dict[str, Any], rest: list[dict[str, str]]) -> Tensor:
        """Scores of an image after the rule's first evaluations under other prompts, (len(rest),); ∞ for NaN."""
        assert isinstance(self.rule, Rephrasing)
        assert self._kind is not None
        evaluations = min(self.rule.probe, self._last + 1)

        def stop(done: int) -> None:
            if done == evaluations:
                self.pipe._interrupt = True

        scores = []
        for start in range(0, len(rest), self.rule.batch):
            some = rest[start : start + self.rule.batch]
            repeated = {
                name: value * len(some) if isinstance(value, list) else value.repeat_interleave(len(some), dim=0)
                for name, value in single.items()
                if name in (*PER_PROMPT, "latents") and isinstance(value, list | Tensor)
            }
            texts = {name: [each[name] for each in some] for name in some[0]}
            more = {"generator": [_replayed(single) for _ in some], "output_type": "latent"}
            quiet = {name: value for name, value in single.items() if not name.startswith("callback")}
            with watch(self.pipe, after_step=stop) as seen:
                self._kind.__call__(self.pipe, **{**quiet, **repeated, **texts, **more})
            self.pipe._interrupt = False
            scores.append(self._judge.running(seen.trajectory)[:, evaluations - 1])
        return torch.cat(scores).nan_to_num(nan=torch.inf)


@contextmanager
def guard(pipe: Any, calibration: Calibration, **settings: Any) -> Iterator[Guard]:
    """Guard every call of `pipe` inside the block; the settings are those of `Guard`.

    Example:
        with guard(pipe, calibration, policy="block") as guarding:
            image = pipe("a red circle on a blue ground", guidance_scale=2.5).images[0]
        guarding.verdicts[0].p_value
    """
    guarding = Guard(pipe, calibration, **settings).attach()
    try:
        yield guarding
    finally:
        guarding.detach()


class _Noise:
    """The noise of a call's images, to be drawn again.

    Attributes:
        images: how many there are, once that is known.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Remember it before the call uses its generators up."""
        given = arguments.get("generator")
        self.images = 0
        self._own = isinstance(given, list)
        # a fresh generator seeds itself and leaves the global one alone
        fallback = torch.Generator()
        fallback.seed()
        generators: list[torch.Generator] = given if isinstance(given, list) else [fallback if given is None else given]
        self._devices = [each.device for each in generators]
        self._states = [each.get_state() for each in generators]
        self._known = given is not None
        self._latents = arguments.get("latents")

    def of(self, row: int) -> dict[str, Any]:
        """The arguments for the noise that image `row` had, if it has a generator or latents of its own."""
        latents = {} if self._latents is None else {"latents": self._latents[row : row + 1]}
        if not self._known or not (self._own or self.images == 1):
            return {**self.other(row, 0), **latents}
        return {"generator": torch.Generator(self._devices[row]).set_state(self._states[row]), **latents}

    def other(self, row: int, attempt: int) -> dict[str, Any]:
        """The arguments for other noise, the same whenever asked for, and another in every call."""
        at = row if self._own else 0
        digest = hashlib.sha256(self._states[at].numpy().tobytes() + f"{row} {attempt}".encode()).digest()
        seed = int.from_bytes(digest[:7], "big")
        return {"generator": torch.Generator(self._devices[at]).manual_seed(seed)}


def _networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _prompt(arguments: Mapping[str, Any], row: int) -> str | None:
    """The caption of image `row` of a call."""
    given = arguments.get("prompt")
    return given[row // arguments.get("num_images_per_prompt", 1)] if isinstance(given, list) else given


def _replayed(single: Mapping[str, Any]) -> torch.Generator:
    """A generator in the state that the one in `single` is in."""
    generator: torch.Generator = single["generator"]
    return torch.Generator(generator.device).set_state(generator.get_state())


def _single(arguments: Mapping[str, Any], row: int) -> dict[str, Any]:
    """The arguments that make image `row` of a call alone; its noise is left to `_Noise`."""
    prompt = row // arguments.get("num_images_per_prompt", 1)
    single = {
        name: value[prompt : prompt + 1] if name in PER_PROMPT and isinstance(value, list | Tensor) else value
        for name, value in arguments.items()
        if name not in ("generator", "latents", "num_images_per_prompt", "batch_size")
    }
    return {name: [value] if name in PER_PROMPT and isinstance(value, str) else value for name, value in single.items()}


def _images(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output.images


def _with_images(output: Any, images: Any) -> Any:
    if isinstance(output, tuple):
        return (images, *output[1:])
    output.images = images
    return output


def _with(images: Any, row: int, image: Any) -> Any:
    """The images of a call, a list of PIL images, an array or a tensor, with one replaced; None makes it black."""
    if isinstance(images, list):
        black = Image.new(images[row].mode, images[row].size)
        return [*images[:row], black if image is None else image, *images[row + 1 :]]
    images = images.clone() if isinstance(images, Tensor) else images.copy()
    images[row] = 0 if image is None else image
    return images
