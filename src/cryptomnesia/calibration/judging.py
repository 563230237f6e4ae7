"""A judge: it turns the record of images into verdicts, by a detector, a calibration and a false-positive rate."""

import math
from functools import cached_property

import torch
from torch import Tensor

from cryptomnesia.calibration.likeness import Likeness
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors.base import Detector, running_scores
from cryptomnesia.errors import UsageError
from cryptomnesia.tracing.generation import real_number, whole_number
from cryptomnesia.tracing.trajectory import Trajectory
from cryptomnesia.verdicts import Verdict


class Judge:
    """Judges images by one detector, one calibration and one false-positive rate.

    Attributes:
        detector: gives the scores.
        calibration: the calibration of the set-up that makes the images.
        fpr: false-positive rate at which an image is flagged.
        last: number of the evaluation, counted from 0, after which the verdict is given.
        likeness: compares the prompts that a service judges with the reference prompts.
    """

    def __init__(
        self, calibration: Calibration, detector: Detector, fpr: float = 0.01, *, decide_by: int | None = None
    ) -> None:
        """Check that detector, calibration and rate fit together, and compute the thresholds.

        Args:
            calibration: the calibration of the set-up that makes the images.
            detector: gives the scores.
            fpr: false-positive rate at which an image is flagged.
            decide_by: number of evaluations after which an image is judged; all of them by default.

        Raises:
            UsageError: saying what does not fit.
        """
        evaluations = calibration.evaluations
        fpr = real_number("fpr", fpr)
        decide_by = None if decide_by is None else whole_number("decide_by", decide_by)
        if decide_by is not None and not 1 <= decide_by <= evaluations:
            raise UsageError(f"got decide_by={decide_by} of {evaluations} evaluations; give one in 1 … {evaluations}")
        self.last = (decide_by or evaluations) - 1
        earliest = detector.earliest(evaluations)
        if self.last + 1 < earliest:
            raise UsageError(
                f"{detector.name} needs {earliest} evaluations before there is a score, got {self.last + 1}; decide "
                "later, or use another detector"
            )
        self.detector = detector
        self.calibration = calibration
        self.likeness = Likeness(calibration)
        self.fpr = fpr
        first = earliest - 1
        self._thresholds = torch.full((self.last + 1,), torch.inf)
        for step_index in range(first, self.last + 1):
            self._thresholds[step_index] = calibration.threshold(detector, fpr, step_index)

    @cached_property
    def early(self) -> "Judge":
        """The judge that gives the same verdicts as soon as the scores no longer change; often this one."""
        settled = self.detector.settled(self.calibration.evaluations)
        if settled > self.last:
            return self
        return Judge(self.calibration, self.detector, self.fpr, decide_by=settled)

    def scores(self, runs: Trajectory) -> tuple[Tensor, Tensor]:
        """The scores after every evaluation up to `last`, (B, N), and the scores that the verdicts rest on, (B,).

        The second are NaN for a run that ended early, and for one whose latents are not finite at any evaluation, even
        if it is one after `last` or the detector does not read the latents.
        """
        running = running_scores(self.detector, runs, self.calibration.references)[:, : self.last + 1]
        count, evaluations = running.shape
        final = running[:, -1].clone() if evaluations > self.last else torch.full((count,), torch.nan)
        final[~runs.norms["z"].isfinite().all(dim=1)] = torch.nan
        return running, final

    def __call__(self, runs: Trajectory, prompts: list[str | None] | None = None) -> list[Verdict]:
        """One verdict per image; it is "could not tell" if the run ended early or its latents are not finite."""
        running, final = self.scores(runs)
        p_values = self.calibration.p_value(self.detector, final, self.last)
        verdicts = []
        for row, (score, p_value) in enumerate(zip(final.tolist(), p_values.tolist(), strict=True)):
            flagged = p_value <= self.fpr
            crossed = (running[row] >= self._thresholds[: running.shape[1]]).nonzero().flatten().tolist()
            if math.isnan(p_value):
                reason = f"could not tell: {self._why_unknown(runs, row)}"
            else:
                sign = "≤" if flagged else ">"
                reason = f"{self.detector.name} {score:.3g} has p = {p_value:.3g} {sign} {self.fpr:g}"
            verdicts.append(
                Verdict(
                    image=row,
                    prompt=None if prompts is None else prompts[row],
                    detector=self.detector.name,
                    fpr=self.fpr,
                    score=score,
                    p_value=p_value,
                    flagged=flagged,
                    first_flagged_step=crossed[0] if flagged else None,
                    reason=reason,
                )
            )
        return verdicts

    def _why_unknown(self, runs: Trajectory, row: int) -> str:
        """Why the score of an image is NaN, in words."""
        broken = (~runs.norms["z"][row].isfinite()).nonzero().flatten().tolist()
        if broken:
            return f"the latents are not finite from evaluation {broken[0]} on; check the model's dtype"
        if runs.evaluations <= self.last:
            return f"the run ended after {runs.evaluations} of {self.last + 1} evaluations"
        if self.detector.signals and "captions" in self.detector.requires and runs.prompts is None:
            return f"{self.detector.name} needs the caption in words, and the call gave none; give it as `prompt`"
        return f"{self.detector.name} gives no score; it reads {', '.join(sorted(self.detector.reads))}"
