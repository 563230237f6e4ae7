"""Calls of a pipeline whose images are judged: with these a guard, a detection and a mitigation make images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors.base import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.guarding.calls import fresh, merged, prompt_of
from cryptomnesia.mitigations.base import Correction, corrected
from cryptomnesia.pipelines.families import pictures_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Trajectory
from cryptomnesia.tracing.watching import Change, Keep, Watch, watch
from cryptomnesia.verdicts import Verdict


class Maker:
    """Makes images with a pipeline's own call and judges them; the `Studio` of mitigations.

    Attributes:
        kind: the pipeline's class, whose `__call__` makes the images.
        batch: the most images to make in one call.
    """

    def __init__(
        self,
        pipe: Any,
        judge: Judge,
        *,
        alters: frozenset[str] = frozenset(),
        batch: int = 8,
        kind: type[Any] | None = None,
    ) -> None:
        """Make images with `pipe` from now on.

        Args:
            pipe: the pipeline.
            judge: judges every image.
            alters: norms that the mitigation sets itself; see `Mitigation`.
            batch: the most images to make in one call.
            kind: the class whose `__call__` makes the images; that of the pipeline by default.
        """
        self.kind: type[Any] = type(pipe) if kind is None else kind
        self.batch = batch
        self._pipe = pipe
        self._judge = judge
        self._pictures: frozenset[str] = pictures_of(pipe)
        self._telling = not judge.detector.reads & alters

    @property
    def setup(self) -> Setup:
        """The pipeline, and the settings of the calls that the calibration is for."""
        return Setup(self._pipe, self._judge.calibration.sampling)

    @property
    def calibration(self) -> Calibration:
        """The calibration of the set-up."""
        return self._judge.calibration

    @property
    def references(self) -> Trajectory:
        """Reference runs of the set-up."""
        return self._judge.calibration.references

    @property
    def detector(self) -> Detector:
        """The detector by which images are judged."""
        return self._judge.detector

    @property
    def flagged_after(self) -> int:
        """The evaluations of a call whose images are all flagged, where the policy lets a guard end it early.

        A pipeline without the property `interrupt` of diffusers runs to its end.
        """
        return self._judge.early.last + 1 if hasattr(self.kind, "interrupt") else self.calibration.evaluations

    def make(
        self, calls: Sequence[Mapping[str, Any]], correction: Correction | None = None
    ) -> tuple[Any, list[Verdict]]:
        """Make the images of several calls in one call, every image from its own noise.

        Returns:
            The output of that call, and a verdict for every image in it.
        """
        return self.generate(merged(calls, self._pictures), correction, images=len(calls))

    def generate(
        self,
        arguments: Mapping[str, Any],
        correction: Correction | None = None,
        *,
        images: int | None = None,
        stop_early: bool = False,
    ) -> tuple[Any, list[Verdict]]:
        """Call the original pipeline and judge its images.

        Args:
            arguments: of the call.
            correction: corrects the runs while they go on.
            images: how many the call makes; needed by a correction that changes captions.
            stop_early: whether the call ends when the judge decides, or the scores no longer change, if all images are
                flagged then.

        Returns:
            The output of the call, and a verdict for every image in it.
        """
        stopped, judge = False, self._judge.early

        def stop(done: int) -> None:
            nonlocal stopped
            if done == judge.last + 1 < judge.calibration.evaluations and all(
                verdict.flagged for verdict in judge(seen.trajectory)
            ):
                stopped = self._pipe._interrupt = True

        watching = self._watched(
            correction,
            images,
            after_step=stop if stop_early and correction is None else None,
            norms=self.detector.norms,
            signals=self.detector.signals,
        )
        try:
            with watching as seen:
                output = self.kind.__call__(self._pipe, **fresh(arguments))
        finally:
            # an interruption by the user stays
            if stopped:
                self._pipe._interrupt = False
        runs = seen.trajectory if correction is None else correction.as_proposed(seen.trajectory)
        # a run that the user interrupts is not judged by what was known early
        judge = judge if stopped else self._judge
        verdicts = judge(runs, [prompt_of(arguments, row) for row in range(len(runs))])
        if correction is not None:
            verdicts = [corrected(verdict, correction, telling=self._telling) for verdict in verdicts]
        return output, verdicts

    @contextmanager
    def _watched(self, correction: Correction | None, images: int | None, **options: Any) -> Iterator[Watch]:
        """Record the calls inside the block, under a correction if there is one."""
        steer = None if correction is None else correction.steer
        watching = watch(self._pipe, steer=steer, condition=self._condition(correction, images), **options)
        with watching as seen, nullcontext() if correction is None else correction.around(self._pipe):
            yield seen

    @staticmethod
    def _condition(correction: Correction | None, images: int | None) -> tuple[int, Change] | None:
        """What `watch` is given to change captions.

        Raises:
            UsageError: for a correction that does so in a user's own call, of which the number of images is not known.
        """
        if correction is None or not correction.changes_captions:
            return None
        if images is None:
            raise UsageError(
                "got a correction that changes captions, for a user's own call; give it to `Studio.make` in `remake`"
            )
        return images, correction.condition

    def first(
        self,
        calls: Sequence[Mapping[str, Any]],
        evaluations: int | None = None,
        *,
        keep: Keep = (0,),
        correction: Correction | None = None,
    ) -> Trajectory:
        """The first evaluations of the runs of several calls, all by default; no images are made.

        The user's callbacks are not called, because these runs make no image.

        Args:
            calls: the calls.
            evaluations: after how many the runs end.
            keep: evaluations whose tensors are kept.
            correction: corrects the runs.
        """

        def stop(done: int) -> None:
            if done == evaluations:
                self._pipe._interrupt = True

        arguments = {
            name: value for name, value in merged(calls, self._pictures).items() if not name.startswith("callback")
        }
        try:
            with self._watched(correction, len(calls), after_step=stop, keep=keep) as seen:
                self.kind.__call__(self._pipe, **{**fresh(arguments), "output_type": "latent"})
        finally:
            self._pipe._interrupt = False
        return seen.trajectory
