"""Guard a pipeline: judge every image that it makes, and do about it what a policy says.

The user's own pipeline stays in use. While a guard is attached the pipeline is an instance of a subclass of its class
with the same name. The `__call__` of that subclass runs the original under `watch`, judges the images and, where the
policy says so, withholds images, makes them again or has the run corrected. Copies of the pipeline are instances of the
same subclass, and guarded in the same way. Any other pipeline that shares the denoiser is stopped by a hook on it.

What a service with several threads may share: pipelines in different threads may share networks, text encoders and
tokenizers. A tokenizer keeps padding and truncation in itself, so while a guard is attached its pipelines use copies of
their tokenizers. Two threads must not use one pipeline object at the same time, nor two pipelines with one scheduler:
both keep the state of the generation in progress. Give every thread a pipeline around the same networks with a
scheduler of its own, and a guard for it.

A guard changes nothing outside its pipelines and their denoiser, with one exception: detectors that are the mean of a
map change settings of the process while a map is computed. One thread at a time does that, and the settings are put
back.
"""

import copy
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

from torch import nn

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.errors import UsageError
from cryptomnesia.guarding.black import black_latents, check_black, returns_latents
from cryptomnesia.guarding.calls import Noise, images_in, prompt_of, replaced, single
from cryptomnesia.guarding.gate import Gate, guarded_call
from cryptomnesia.guarding.judges import Given, Judges, MethodError, Unknown, unknown_of
from cryptomnesia.guarding.making import Maker
from cryptomnesia.guarding.pipes import Pipes
from cryptomnesia.guarding.policies import Open, Policy, policy_of
from cryptomnesia.mitigations import Flagged, Remade
from cryptomnesia.mitigations.base import withheld
from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.families import family_of, pictures_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.verdicts import Verdict

logger = logging.getLogger("cryptomnesia")


class Guard:
    """The guard of one pipeline: attach it for as long as a service runs, or use it as a context manager.

    Attributes:
        pipe: the pipeline.
        calibrations: of its set-ups; every call is judged by the one that was made with its settings.
        policy: what happens to flagged images.
        unknown: what happens to images of calls that no calibration fits.
        detector: gives the scores; with `auto` every call is judged by the default of its set-up, and this is that of
            the first calibration.
        mitigation: of flagged images, None if the policy needs none.
        on_verdict: called with every verdict before the call returns, or None.
        verdicts: one per image of the newest call of the pipeline, or of a copy that was made while the guard was
            attached; empty if that call failed.

    Example:
        with guard(pipe, calibration, policy="block") as guarding:
            image = pipe("a red circle on a blue ground").images[0]
        guarding.verdicts[0].p_value
    """

    def __init__(
        self,
        pipe: Any,
        calibration: Given | Sequence[Given] | None = None,
        *,
        policy: str | Policy = "observe",
        unknown: Unknown = "raise",
        detector: str | Any = "auto",
        fpr: float = 0.01,
        mitigation: str | Any = "auto",
        decide_by: int | None = None,
        on_verdict: Callable[[Verdict], None] | None = None,
    ) -> None:
        """Check that everything fits together; nothing is attached yet. Arguments as for `guard`."""
        self.policy = policy_of(policy)
        self.unknown = unknown_of(unknown)
        self.on_verdict = on_verdict
        self._fpr = fpr
        self._judges = Judges(
            pipe,
            calibration,
            detector=detector,
            mitigation=mitigation if self.policy.mitigates else None,
            fpr=fpr,
            decide_by=decide_by,
            unknown=self.unknown,
        )
        self.calibrations = self._judges.calibrations
        self.detector = self._judges.detector
        self.mitigation = self._judges.mitigation
        self._prepare(pipe)

    def _prepare(self, pipe: Any) -> None:
        """Make this the guard of a pipeline, which is not attached yet."""
        self.pipe = pipe
        self.verdicts: tuple[Verdict, ...] = ()
        self._networks = _networks(pipe)
        self._pipes: Pipes | None = None
        self._gate: Gate | None = None
        # the newest call, and the thread that made it
        self._newest: tuple[object, int] | None = None

    @property
    def calibration(self) -> Calibration:
        """The first of the calibrations."""
        return self.calibrations[0]

    def also(self, pipe: Any) -> "Guard":
        """A guard with the same settings for another pipeline around the same model.

        A service that makes a pipeline for every request guards it in one line:

            with guarding.also(Pipe.from_pipe(pipe, scheduler=scheduler)) as mine:
                images = mine.pipe(prompt).images
            mine.verdicts

        Every such guard has verdicts of its own, so requests may be answered in several threads.

        Raises:
            UsageError: for a pipeline of an unknown family, or around another model.
        """
        self._judges.check_model(pipe)
        other = copy.copy(self)
        other._prepare(pipe)
        return other

    def calibration_for(self, **call: Any) -> Calibration:
        """The calibration by which a call of the pipeline is judged.

        Args:
            **call: arguments of the call, without prompts and generators.

        Raises:
            UsageError: if no calibration was made with these settings, naming everything that differs from the nearest.
        """
        return self._judges.fitting(Setup.of(self.pipe, call)).calibration

    def attach(self) -> "Guard":
        """Guard every call of the pipeline from now on.

        Raises:
            UsageError: if the pipeline is guarded already.
        """
        present: Guard | None = getattr(type(self.pipe), "guarded_by", None)
        if present is not None and present.pipe is self.pipe:
            raise UsageError("the pipeline is guarded already; detach that guard first")
        if self._pipes is not None:
            raise UsageError("the guard is attached already; detach it first")
        network = family_of(self.pipe).module
        self._pipes = Pipes(self.pipe, self, self._call)
        self._gate = Gate(network, self._pipes.kind.__name__, self._on_refusal)
        return self

    def detach(self) -> None:
        """Leave the pipeline and its copies as they were before `attach`; does nothing if the guard is not attached.

        A tokenizer that the user replaced meanwhile stays.
        """
        if self._pipes is None or self._gate is None:
            return
        self._gate.open()
        self._pipes.release()
        self._pipes = self._gate = None

    def __enter__(self) -> "Guard":
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _on_refusal(self) -> None:
        """Forget the verdicts of the call before: the caller may take them for those of the refused one."""
        if self._newest is not None and self._newest[1] == get_ident():
            self.verdicts = ()

    def _call(self, kind: type[Any], called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the pipeline, or of a copy, whose class is `kind` without the guard."""
        gate, pipes = self._gate, self._pipes
        if gate is None or pipes is None:
            # the guard was detached in another thread at this very moment
            return kind.__call__(called, *args, **kwargs)
        self.verdicts = ()
        newest = self._newest = (object(), get_ident())
        arguments = _named(kind, called, args, kwargs)
        latent = (self.policy.acts or self.unknown == "block") and returns_latents(called, arguments)
        if latent:
            check_black(called)
        gate.place()
        pipes.give_tokenizers(called)
        judge = self._judge(called, arguments)
        with guarded_call(called):
            if isinstance(judge, Judge):
                output, verdicts, settled = self._judged(kind, called, arguments, judge)
            else:
                output, verdicts, settled = self._unjudged(kind, called, arguments, why=judge)
            # an image that is withheld is replaced last, so that an error hands out none
            for row, remade in settled.items():
                black = None
                if latent and remade.output is None:
                    black = black_latents(called, images_in(output)[row], arguments)
                output = replaced(output, row, remade.output, remade.place, black=black)
                verdicts[row] = remade.verdict
        if self._newest is newest:
            self.verdicts = tuple(verdicts)
        if self.on_verdict is not None:
            for verdict in verdicts:
                self.on_verdict(verdict)
        return output

    def _judge(self, called: Any, arguments: dict[str, Any]) -> Judge | str:
        """The judge for a call, or why no calibration fits it.

        Raises:
            MethodError: if one fits, and the detector or the mitigation cannot work in the call's set-up.
            UsageError: if none fits, and the rule is to raise.
        """
        try:
            if called is self.pipe and (replacements := _replaced(self._networks, called)):
                raise UsageError(
                    f"the pipeline's {', '.join(replacements)} was replaced after its guard was made; make a new guard"
                )
            sampling = family_of(called).sampling(arguments, defaults_of(called))
            return self._judges.fitting(Setup(called, sampling))
        except UsageError as error:
            if self.unknown == "raise" or isinstance(error, MethodError):
                raise
            return str(error)

    def _judged(
        self, kind: type[Any], called: Any, arguments: dict[str, Any], judge: Judge
    ) -> tuple[Any, list[Verdict], dict[int, Remade]]:
        """The output of a call, the verdicts, and what becomes of the images that are not clean, by their numbers."""
        noise = Noise(arguments)
        alters = frozenset() if self.mitigation is None else self.mitigation.alters
        maker = Maker(called, judge, alters=alters, kind=kind)
        correction = None
        if self.mitigation is not None and self.policy.corrects:
            correction = self.mitigation.correction(judge.calibration.references)
        output, verdicts = maker.generate(arguments, correction, stop_early=self.policy.acts)
        captions, p_values = ([getattr(verdict, name) for verdict in verdicts] for name in ("prompt", "p_value"))
        if unlike := judge.likeness.seen(captions, p_values):
            logger.warning("%s", unlike)
        rows = [
            row
            for row, verdict in enumerate(verdicts)
            if self.policy.acts and not (verdict.clean or verdict.action == "mitigated")
        ]
        images = [self._open(arguments, noise, row, verdicts[row], alone=len(verdicts) == 1) for row in rows]
        if getattr(called, "_interrupt", False):
            # who interrupted the call wants nothing more to be computed
            settled = [Remade(withheld(image.flagged.verdict, "the call was interrupted")) for image in images]
        else:
            settled = self.policy.settle(images, maker, self.mitigation)
        return output, verdicts, dict(zip(rows, settled, strict=True))

    def _unjudged(
        self, kind: type[Any], called: Any, arguments: dict[str, Any], why: str
    ) -> tuple[Any, list[Verdict], dict[int, Remade]]:
        """The same for a call that no calibration fits."""
        output = kind.__call__(called, **arguments)
        verdicts = [
            Verdict(
                image=row,
                prompt=prompt_of(arguments, row),
                detector=self.detector.name,
                fpr=self._fpr,
                score=math.nan,
                p_value=math.nan,
                flagged=False,
                first_flagged_step=None,
                reason=f"could not tell: {why}",
                action="allowed",
            )
            for row in range(len(images_in(output)))
        ]
        if self.unknown == "allow":
            return output, verdicts, {}
        return output, verdicts, {row: Remade(withheld(verdict)) for row, verdict in enumerate(verdicts)}

    def _open(self, arguments: dict[str, Any], noise: Noise, row: int, verdict: Verdict, *, alone: bool) -> Open:
        call = single(arguments, row, pictures_of(self.pipe))

        def other(attempt: int) -> dict[str, Any]:
            return {**call, **noise.other(row, attempt)}

        return Open(Flagged({**call, **noise.of(row, alone=alone)}, verdict), other)


def guard(
    pipe: Any,
    calibration: Given | Sequence[Given] | None = None,
    *,
    policy: str | Policy = "observe",
    unknown: Unknown = "raise",
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
        calibration: for the set-up of the calls, as an object or a file; several in a list, of which every call is
            judged by the one that was made with its settings. By default `calibration.safetensors` in the folder that
            the pipeline was loaded from.
        policy: what to do about images that are flagged, or that could not be judged: `observe`, `block`, `mitigate`,
            `regenerate`, `escalate`, or an object such as `Regenerate(retries=5)`.
        unknown: what to do about a call that no calibration fits: `raise` refuses it, `allow` returns its images and
            `block` withholds them. A verdict says then that they could not be judged, and what differs.
        detector: name or object of the detector; with `auto` every call is judged by the default of its set-up.
        fpr: false-positive rate at which an image is flagged, in (0, 1).
        mitigation: name or object of the mitigation that `mitigate`, `regenerate` and `escalate` use; `auto` is the
            default of the pipeline's family.
        decide_by: judge every image after this many evaluations. By default it is judged at the end; policies that do
            more than observe judge it as soon as the detector's score no longer changes, which gives the same verdict.
            If all images of a call are flagged then, these policies leave out the rest of the run.
        on_verdict: called with every verdict before the call returns.

    Raises:
        UsageError: saying what does not fit.
    """
    return Guard(
        pipe,
        calibration,
        policy=policy,
        unknown=unknown,
        detector=detector,
        fpr=fpr,
        mitigation=mitigation,
        decide_by=decide_by,
        on_verdict=on_verdict,
    )


def _named(kind: type[Any], called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    given = dict(inspect.signature(kind.__call__).bind(called, *args, **kwargs).arguments)
    del given["self"]
    return given | given.pop("kwargs", {})


def _networks(pipe: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _replaced(networks: dict[str, nn.Module], pipe: Any) -> list[str]:
    """The names of the networks of a pipeline that are others than `networks`."""
    return [name for name, part in _networks(pipe).items() if networks.get(name) is not part]
