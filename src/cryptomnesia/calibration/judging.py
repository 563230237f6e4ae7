"""From what was seen of images to what is said of them: a detector, a calibration and a rate together."""

from dataclasses import dataclass

import torch

from cryptomnesia.calibration.scores import Calibration
from cryptomnesia.detectors import DETECTORS, SIGNALS
from cryptomnesia.errors import UsageError
from cryptomnesia.tracing.trajectory import Signal, Trajectory


@dataclass(frozen=True)
class Judgement:
    """What is said of one image.

    Attributes:
        score: the detector's; NaN when it could not tell.
        p_value: conformal p-value of the score, NaN likewise.
        flagged: whether the p-value is at most the rate.
        crossed: of a flagged image, the evaluation, from 0, at which its running score was first flagged, against
            the references' scores at the same place.
        reason: why, in words.
    """

    score: float
    p_value: float
    flagged: bool
    crossed: int | None
    reason: str


class Judge:
    """Judges images by the same detector, references and rate.

    Attributes:
        detector: that makes the scores.
        last: the evaluation, from 0, after which the judgement is made.
        signals: that it is to be given; see `watch`.
    """

    def __init__(
        self,
        calibration: Calibration,
        detector: str = "drift",
        rate: float = 0.01,
        *,
        decide_by: int | None = None,
    ) -> None:
        """See that they fit together.

        Args:
            calibration: of the setup that makes the images.
            detector: one of `DETECTORS`.
            rate: false-positive rate at which an image is flagged.
            decide_by: judge after this many evaluations rather than at the end.

        Raises:
            UsageError: saying what does not fit.
        """
        if detector not in DETECTORS:
            raise UsageError(f"got the unknown detector {detector!r}; known are {', '.join(DETECTORS)}")
        evaluations = len(calibration.reference.delta.mean)
        if decide_by is not None and not 1 <= decide_by <= evaluations:
            raise UsageError(f"got decide_by={decide_by} of {evaluations} evaluations; give one in 1 … {evaluations}")
        self.detector = DETECTORS[detector](calibration.reference)
        self.signals: tuple[Signal, ...] = (SIGNALS[detector],) if detector in SIGNALS else ()
        if (decide_by or evaluations) < self.detector.earliest:
            raise UsageError(
                f"{detector} needs {self.detector.earliest} evaluations to tell anything, there are to be "
                f"{decide_by or evaluations}; decide later, or take another detector"
            )
        self.last = (decide_by or evaluations) - 1
        self._calibration = calibration
        self._rate = rate
        self._thresholds = torch.tensor(
            [calibration.threshold(detector, rate, evaluation) for evaluation in range(self.last + 1)]
        )

    def __call__(self, trajectory: Trajectory) -> list[Judgement]:
        """One judgement per image; "could not tell" where the run ended early or its latents are not finite."""
        running = self.detector.running(trajectory)[:, : self.last + 1]
        count, taken = running.shape
        scores = running[:, -1].clone() if taken > self.last else torch.full((count,), torch.nan)
        # also where the latents broke after the decision, or behind what the detector looks at
        scores[~trajectory.norms.z.isfinite().all(dim=1)] = torch.nan
        p_values = self._calibration.p_value(self.detector.name, scores, self.last)
        judgements = []
        for row, (score, p) in enumerate(zip(scores.tolist(), p_values.tolist(), strict=True)):
            flagged = p <= self._rate
            crossed = int((running[row] >= self._thresholds).nonzero()[0]) if flagged else None
            if p == p:
                sign = "≤" if flagged else ">"
                reason = f"{self.detector.name} {score:.3g} has p = {p:.3g} {sign} {self._rate:g}"
            else:
                reason = f"could not tell: {self._unknown(trajectory, row)}"
            judgements.append(Judgement(score, p, flagged, crossed, reason))
        return judgements

    def _unknown(self, trajectory: Trajectory, row: int) -> str:
        broken = (~trajectory.norms.z[row].isfinite()).nonzero().flatten().tolist()
        if broken:
            return f"the latents are not finite from evaluation {broken[0]} on; check the model's dtype"
        taken = trajectory.norms.z.shape[1]
        if taken <= self.last:
            return f"the run ended after {taken} of {self.last + 1} evaluations"
        return f"{self.detector.name} lacks its signal"
