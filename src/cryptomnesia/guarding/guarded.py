"""Guard a pipeline: judge every image that it makes, and do about it what a policy says.

The user's own pipeline stays in use. While a guard is attached the pipeline is an instance of a subclass of its
class with the same name, whose `__call__` runs the original under `watch`, judges what came out and,
where the policy says so, withholds images, makes them again or has the run corrected. Nothing global
is touched, so pipelines that are guarded in different threads do not see each other; only maps, which some detectors
are means of, change settings of the process while they are made, one thread at a time.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from itertools import repeat
from typing import Any, Literal, get_args

from torch import nn

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.scores import Calibration
from cryptomnesia.errors import UsageError
from cryptomnesia.guarding.calls import Noise, replaced, single
from cryptomnesia.guarding.making import Maker, Remade, Verdict, uncorrected, withheld
from cryptomnesia.mitigations import Rephrasing, Rule, StabilityRule, default_rule
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.pipelines.fingerprint import weights_digests
from cryptomnesia.tracing.steering import check_steerable

Policy = Literal["observe", "mitigate", "block", "regenerate"]
"""`observe`: say so. `mitigate`: apply the rule. `block`: return a black image instead. `regenerate`: try other seeds,
at most `retries`, then mitigate."""


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
        judge = Judge(calibration, detector, rate, decide_by=decide_by)
        self._maker = Maker(pipe, calibration, judge, rule, early=decide_by is not None and policy != "observe")
        self._weights = weights_digests(pipe)
        calibration.check(pipe, calibration.sampling, self._weights)
        self._parts = _networks(pipe)

    def attach(self) -> "Guard":
        """Guard every call of the pipeline from now on.

        Raises:
            UsageError: if the pipeline is guarded already.
        """
        kind = type(self.pipe)
        other: Guard | None = getattr(kind, "guarded_by", None)
        if other is not None and other.pipe is self.pipe:
            raise UsageError("the pipeline is guarded already; detach that guard first")
        if other is not None:
            kind = kind.__mro__[1]  # of a pipeline that was copied while it was guarded
        guarding = self

        @wraps(kind.__call__)
        def __call__(called: Any, *args: Any, **kwargs: Any) -> Any:
            # a copy of the pipeline is another one
            return guarding._call(args, kwargs) if called is guarding.pipe else kind.__call__(called, *args, **kwargs)

        names = {"__call__": __call__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        self.pipe.__class__ = type(kind.__name__, (kind,), {**names, "guarded_by": self})
        self._maker.kind = kind
        return self

    def detach(self) -> None:
        """Leave the pipeline as it was; does nothing if the guard is not attached."""
        if getattr(type(self.pipe), "guarded_by", None) is self:
            self.pipe.__class__ = self._maker.kind

    def __enter__(self) -> "Guard":
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = self._arguments(args, kwargs)
        self.verdicts = ()
        noise = Noise(arguments)
        output, verdicts = self._maker.generate(arguments, correct=self.policy == "mitigate")
        open_rows = [
            row
            for row, each in enumerate(verdicts)
            if not (each.clean or each.action == "mitigated" or self.policy == "observe")
        ]
        alone = [single(arguments, row) for row in open_rows]
        found = [verdicts[row] for row in open_rows]
        if getattr(self.pipe, "_interrupt", False):
            # who interrupted the call wants nothing more computed
            done = [Remade(withheld(each, "the call was interrupted")) for each in found]
        elif self.policy == "regenerate":
            done = [self._regenerate(*each) for each in zip(alone, repeat(noise), found)]
        elif self.policy == "mitigate" and isinstance(self.rule, Rephrasing):
            own = [noise.of(row, alone=len(verdicts) == 1) for row in open_rows]
            done = self._maker.mitigate([{**one, **its} for one, its in zip(alone, own, strict=True)], found)
        else:
            why = uncorrected if self.policy == "mitigate" else (lambda _: "")
            done = [Remade(withheld(each, why(each))) for each in found]
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
        signature = inspect.signature(self._maker.kind.__call__)
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

    def _regenerate(self, alone: dict[str, Any], noise: Noise, verdict: Verdict) -> Remade:
        """Other seeds for one image, then mitigation."""
        for attempt in range(1, self.retries + 1):
            output, (again,) = self._maker.generate({**alone, **noise.other(verdict.image, attempt)})
            verdict = replace(verdict, retried=(*verdict.retried, again.p_value))
            if again.clean:
                reason = f"{verdict.reason}; seed {attempt} after it has p = {again.p_value:.3g}"
                return Remade(replace(verdict, action="regenerated", reason=reason), output)
        verdict = replace(verdict, reason=f"{verdict.reason}; {self.retries} other seeds were no better")
        return self._maker.mitigate([{**alone, **noise.other(verdict.image, self.retries)}], [verdict])[0]

    def mitigate(self, calls: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> list[Remade]:
        """See `Maker.mitigate`."""
        return self._maker.mitigate(calls, verdicts)


guard = Guard
"""`Guard` where it stands in a `with` statement: a verb, like `watch` and `stabilize`."""


def _networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
