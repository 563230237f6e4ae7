"""The verdict on one image: one type for guards, detections and audits."""

import math
from dataclasses import dataclass
from typing import Literal

Action = Literal["none", "mitigated", "withheld", "regenerated", "allowed"]
"""What became of an image: returned as it was, made again or corrected, replaced by black, made from another seed,
returned although no calibration fits its call."""


@dataclass(frozen=True)
class Verdict:
    """What was found out about one image, and what was done about it.

    Attributes:
        image: number of the image in the output of its call, from 0.
        prompt: its caption, None if it was not given in words.
        detector: name of the detector that gave the score.
        fpr: false-positive rate at which an image is flagged, in (0, 1).
        score: of the image as it was first generated, higher is more memorized; NaN when the detector could not tell.
            If the run was corrected while it went on and the detector reads what the correction changes, it is the
            score of what the solver proposed; otherwise it is that of the corrected run, and its p-value bounds no
            error.
        p_value: conformal p-value of the score: the probability that an image of an ordinary prompt scores as high; NaN
            when the score is.
        flagged: whether the p-value is at most `fpr`.
        first_flagged_step: for a flagged image, the denoiser evaluation, counted from 0, at which the score so far was
            first high enough, compared with the reference runs at the same evaluation; otherwise None.
        reason: what was found and done, in words.
        severity: how strongly the run was corrected: `none`, `mild` or `strong`.
        corrected: the evaluations at which the run was corrected.
        dropped: the words that were left out of the prompt.
        retried: p-values of the images that were generated after the first one. The image that is returned was chosen
            among several by its p-value, so this p-value bounds no error.
        action: what became of the image.
    """

    image: int
    prompt: str | None
    detector: str
    fpr: float
    score: float
    p_value: float
    flagged: bool
    first_flagged_step: int | None
    reason: str
    severity: str = "none"
    corrected: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()
    retried: tuple[float, ...] = ()
    action: Action = "none"

    @property
    def clean(self) -> bool:
        """Whether the image could be judged and was not flagged."""
        return not self.flagged and not math.isnan(self.p_value)

    @property
    def answer(self) -> str:
        """The verdict in one to three words: `memorized?`, `ordinary` or `could not tell`."""
        return "memorized?" if self.flagged else "ordinary" if self.clean else "could not tell"
