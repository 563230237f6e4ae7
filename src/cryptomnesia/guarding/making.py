"""Calls of a pipeline whose images are judged: what a guard and a mitigation make images with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors.base import Detector
from cryptomnesia.guarding.calls import merged, prompt_of
from cryptomnesia.mitigations.base import Correction, corrected
from cryptomnesia.tracing.trajectory import Trajectory
from cryptomnesia.tracing.watching import watch
from cryptomnesia.verdicts import Verdict


class Maker:
    """Makes images with a pipeline's own call and judges them; a `Studio` for mitigations.

    Attributes:
        kind: the pipeline's class, whose `__call__` makes the images.
        batch: images to make in one call, at most.
    """

    def __init__(self, pipe: Any, judge: Judge, *, alters: frozenset[str] = frozenset(), batch: int = 8) -> None:
        """Remember what belongs together.

        Args:
            pipe: the pipeline.
            judge: of every image.
            alters: norms that the mitigation sets itself; see `Mitigation`.
            batch: images to make in one call, at most.
        """
        self.kind: type[Any] = type(pipe)
        self.batch = batch
        self._pipe = pipe
        self._judge = judge
        self._telling = not judge.detector.reads & alters

    @property
    def references(self) -> Trajectory:
        """Reference runs of the set-up."""
        return self._judge.calibration.references

    @property
    def detector(self) -> Detector:
        """By which images are judged."""
        return self._judge.detector

    def make(
        self, calls: Sequence[Mapping[str, Any]], correction: Correction | None = None
    ) -> tuple[Any, list[Verdict]]:
        """Output and verdicts of one call that makes the images of several, each with its own noise."""
        return self.generate(merged(calls), correction)

    def generate(
        self, arguments: Mapping[str, Any], correction: Correction | None = None, *, stop_early: bool = False
    ) -> tuple[Any, list[Verdict]]:
        """Output and verdicts of a call of the original pipeline.

        Args:
            arguments: of the call.
            correction: of its runs.
            stop_early: whether the call ends once the judge has flagged all of its images.
        """
        stopped = False

        def stop(done: int) -> None:
            nonlocal stopped
            judge = self._judge
            if done == judge.last + 1 < judge.calibration.evaluations and all(
                verdict.flagged for verdict in judge(seen.trajectory)
            ):
                stopped = self._pipe._interrupt = True

        with watch(
            self._pipe,
            steer=None if correction is None else correction.steer,
            after_step=stop if stop_early and correction is None else None,
            norms=self.detector.norms,
            signals=self.detector.signals,
        ) as seen:
            output = self.kind.__call__(self._pipe, **arguments)
        if stopped:
            self._pipe._interrupt = False
        runs = seen.trajectory if correction is None else correction.as_proposed(seen.trajectory)
        verdicts = self._judge(runs, [prompt_of(arguments, row) for row in range(len(runs))])
        if correction is not None:
            verdicts = [corrected(verdict, correction, telling=self._telling) for verdict in verdicts]
        return output, verdicts

    def first_scores(self, calls: Sequence[Mapping[str, Any]], evaluations: int, detector: Detector) -> Tensor:
        """Scores (B,) after the first evaluations of runs that end there, NaN where there is none.

        The user's callbacks are left out: these runs make no image.
        """
        evaluations = min(evaluations, self._judge.last + 1)

        def stop(done: int) -> None:
            if done == evaluations:
                self._pipe._interrupt = True

        arguments = {name: value for name, value in merged(calls).items() if not name.startswith("callback")}
        with watch(self._pipe, after_step=stop, norms=detector.norms) as seen:
            self.kind.__call__(self._pipe, **{**arguments, "output_type": "latent"})
        self._pipe._interrupt = False
        scores = detector.running(seen.trajectory, self.references)
        return scores[:, evaluations - 1] if scores.shape[1] >= evaluations else torch.full((len(scores),), torch.nan)
