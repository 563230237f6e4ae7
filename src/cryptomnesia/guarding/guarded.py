"""Guard a pipeline: judge every image that it makes, and do about it what a policy says.

The user's own pipeline stays in use. While a guard is attached the pipeline is an instance of a subclass of its class
with the same name. The `__call__` of that subclass runs the original under `watch`, judges the images and, where the
policy says so, withholds images, makes them again or has the run corrected.

What a service with several threads may share: pipelines in different threads may share networks, text encoders and
tokenizers. A tokenizer keeps padding and truncation in itself, so while a guard is attached its pipeline uses copies of
its tokenizers. Two threads must not use one pipeline object at the same time, nor two pipelines with one scheduler:
both keep the state of the generation in progress. Give every thread a pipeline around the same networks with a
scheduler of its own, and a guard for it.

A guard changes nothing outside its pipeline, with one exception: detectors that are the mean of a map change settings
of the process while a map is computed. One thread at a time does that, and the settings are put back.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import Calibration, resolved
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.errors import UsageError
from cryptomnesia.guarding.calls import Noise, replaced, single
from cryptomnesia.guarding.making import Maker
from cryptomnesia.guarding.policies import Open, Policy, policy_of
from cryptomnesia.mitigations import Flagged, Remade
from cryptomnesia.mitigations import mitigation as mitigation_of
from cryptomnesia.mitigations.base import withheld
from cryptomnesia.pipelines.families import family_of, pictures_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.tokenizers import copied_tokenizers
from cryptomnesia.verdicts import Verdict


class Guard:
    """The guard of one pipeline: attach it for as long as a service runs, or use it as a context manager.

    Attributes:
        pipe: the pipeline.
        calibration: of its set-up.
        policy: what happens to flagged images.
        detector: gives the scores.
        mitigation: of flagged images, None if the policy needs none.
        on_verdict: called with every verdict before the call returns, or None.
        verdicts: one per image of the newest call; empty if that call failed.

    Example:
        with guard(pipe, calibration, policy="block") as guarding:
            image = pipe("a red circle on a blue ground").images[0]
        guarding.verdicts[0].p_value
    """

    def __init__(
        self,
        pipe: Any,
        calibration: Calibration | str | Path | None = None,
        *,
        policy: str | Policy = "observe",
        detector: str | Any = "auto",
        fpr: float = 0.01,
        mitigation: str | Any = "auto",
        decide_by: int | None = None,
        on_verdict: Callable[[Verdict], None] | None = None,
    ) -> None:
        """Check that everything fits together; nothing is attached yet. Arguments as for `guard`."""
        self.pipe = pipe
        self.calibration = resolved(calibration, pipe)
        self.policy = policy_of(policy)
        self.on_verdict = on_verdict
        self.verdicts: tuple[Verdict, ...] = ()
        setup = Setup(pipe, self.calibration.sampling)
        self.detector = detector_of(detector, setup)
        setup.check([self.detector])
        self.mitigation = mitigation_of(mitigation, setup) if self.policy.mitigates else None
        self.calibration.check(setup)
        judge = Judge(self.calibration, self.detector, fpr, decide_by=decide_by)
        alters = frozenset() if self.mitigation is None else self.mitigation.alters
        self._maker = Maker(pipe, judge, alters=alters)
        self._stop_early = decide_by is not None and self.policy.acts
        self._networks = _networks(pipe)
        # name → the pipeline's tokenizer and the copy that takes its place while the guard is attached
        self._tokenizers: dict[str, tuple[Any, Any]] = {}

    def attach(self) -> "Guard":
        """Guard every call of the pipeline from now on.

        Raises:
            UsageError: if the pipeline is guarded already.
        """
        kind = type(self.pipe)
        present: Guard | None = getattr(kind, "guarded_by", None)
        if present is not None and present.pipe is self.pipe:
            raise UsageError("the pipeline is guarded already; detach that guard first")
        if present is not None:
            # the pipeline is a copy of one that was guarded at that moment
            kind = kind.__mro__[1]
        guarding = self
        self._tokenizers = {
            name: (getattr(self.pipe, name), private) for name, private in copied_tokenizers(self.pipe).items()
        }

        @wraps(kind.__call__)
        def __call__(called: Any, *args: Any, **kwargs: Any) -> Any:
            # a copy of the guarded pipeline has the same class, and is not guarded
            return guarding._call(args, kwargs) if called is guarding.pipe else kind.__call__(called, *args, **kwargs)

        attributes = {"__call__": __call__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        self.pipe.__class__ = type(kind.__name__, (kind,), {**attributes, "guarded_by": self})
        self._maker.kind = kind
        for name, (_, private) in self._tokenizers.items():
            setattr(self.pipe, name, private)
        return self

    def detach(self) -> None:
        """Leave the pipeline as it was before `attach`; does nothing if the guard is not attached.

        A tokenizer that the user replaced meanwhile stays.
        """
        if getattr(type(self.pipe), "guarded_by", None) is not self:
            return
        self.pipe.__class__ = self._maker.kind
        for name, (tokenizer, private) in self._tokenizers.items():
            if getattr(self.pipe, name) is private:
                setattr(self.pipe, name, tokenizer)
        self._tokenizers = {}

    def __enter__(self) -> "Guard":
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = self._arguments(args, kwargs)
        self.verdicts = ()
        noise = Noise(arguments)
        correction = None
        if self.mitigation is not None and self.policy.corrects:
            correction = self.mitigation.correction(self.calibration.references)
        output, verdicts = self._maker.generate(arguments, correction, stop_early=self._stop_early)
        rows = [
            row
            for row, verdict in enumerate(verdicts)
            if self.policy.acts and not (verdict.clean or verdict.action == "mitigated")
        ]
        images = [self._open(arguments, noise, row, verdicts[row], alone=len(verdicts) == 1) for row in rows]
        if getattr(self.pipe, "_interrupt", False):
            # who interrupted the call wants nothing more to be computed
            settled = [Remade(withheld(image.flagged.verdict, "the call was interrupted")) for image in images]
        else:
            settled = self.policy.settle(images, self._maker, self.mitigation)
        for row, remade in zip(rows, settled, strict=True):
            verdicts[row] = remade.verdict
            output = replaced(output, row, remade.output, remade.place)
        self.verdicts = tuple(verdicts)
        if self.on_verdict is not None:
            for verdict in verdicts:
                self.on_verdict(verdict)
        return output

    def _open(self, arguments: dict[str, Any], noise: Noise, row: int, verdict: Verdict, *, alone: bool) -> Open:
        call = single(arguments, row, pictures_of(self.pipe))

        def other(attempt: int) -> dict[str, Any]:
            return {**call, **noise.other(row, attempt)}

        return Open(Flagged({**call, **noise.of(row, alone=alone)}, verdict), other)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, once it is certain that the call fits the calibration."""
        signature = inspect.signature(self._maker.kind.__call__)
        given = dict(signature.bind(self.pipe, *args, **kwargs).arguments)
        given.pop("self", None)
        given |= given.pop("kwargs", {})
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        replacements = [name for name, part in _networks(self.pipe).items() if self._networks.get(name) is not part]
        if replacements:
            raise UsageError(
                f"the pipeline's {', '.join(replacements)} was replaced after its guard was made; make a new guard"
            )
        sampling = family_of(self.pipe).sampling(given, defaults)
        self.calibration.check(Setup(self.pipe, sampling))
        return given


def guard(
    pipe: Any,
    calibration: Calibration | str | Path | None = None,
    *,
    policy: str | Policy = "observe",
    detector: str | Any = "auto",
    fpr: float = 0.01,
    mitigation: str | Any = "auto",
    decide_by: int | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
) -> Guard:
    """A guard for a pipeline: use it as a context manager, or `attach` it for as long as a service runs.

    The `callback_on_step_end` of a call also runs for every further image that a policy makes and that may be returned;
    it never runs for probes, which make no image.

    Args:
        pipe: a pipeline of a known family.
        calibration: for the set-up of the calls, as an object or a file; by default `calibration.safetensors` in the
            folder that the pipeline was loaded from. Calls with other settings are refused.
        policy: what to do about images that are flagged, or that could not be judged: `observe`, `block`, `mitigate`,
            `regenerate`, or an object such as `Regenerate(retries=5)`.
        detector: name or object of the detector; `auto` is the default of the pipeline's family.
        fpr: false-positive rate at which an image is flagged, in (0, 1).
        mitigation: name or object of the mitigation that `mitigate` and `regenerate` use; `auto` is the default of the
            pipeline's family.
        decide_by: judge every image after this many evaluations instead of at the end. If the policy does not observe
            only, and all images of a call are flagged then, the rest of the run is not computed.
        on_verdict: called with every verdict before the call returns.

    Raises:
        UsageError: saying what does not fit.
    """
    return Guard(
        pipe,
        calibration,
        policy=policy,
        detector=detector,
        fpr=fpr,
        mitigation=mitigation,
        decide_by=decide_by,
        on_verdict=on_verdict,
    )


def _networks(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
