"""The stability rule with thresholds from the reference runs, for any solver and guidance. A version of this library.

The thresholds of arXiv:2605.22050 are for Stable Diffusion at 50 steps. Here they follow from the reference runs:

- τ: a share `fpr` of the reference runs has, at some evaluation, z-scores of both ‖δ‖ and ‖x̂_0‖ above it.
- γ: the share `inside` of all values of the reference runs lies within γ standard deviations of the mean.

A run that is triggered is corrected in the strong form, at every evaluation until its end at which the z-score of ‖δ‖
exceeds τ. With fewer reference runs than 1/`fpr`, τ is the largest value of any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cryptomnesia.detectors.base import Moments
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Mitigation, Prepared, Remade, Studio, made
from cryptomnesia.mitigations.stability import StabilityCorrection, StabilityRule
from cryptomnesia.tracing.steering import check_steerable
from cryptomnesia.tracing.trajectory import Trajectory

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class StabilityCalibrated(Mitigation):
    """At which rates the thresholds hold.

    Attributes:
        fpr: share of ordinary runs that are corrected, in (0, 1).
        inside: share of ordinary values that lie inside a region, in (0, 1).
    """

    fpr: float = 0.01
    inside: float = 0.95

    name = "stability-calibrated"  # type: ignore[override]
    summary = "Pulls the norms of a run that leaves its usual range back into it, by thresholds of the model itself."
    source = "this library, after arXiv:2605.22050"
    use_when = "You want a baseline beside `stability-published` on another model or solver than that of the paper."
    avoid_when = (
        "You rely on it: it moves norms and not the caption, so the layout of the memorized picture can stay with "
        "other colours. Look at the pictures."
    )
    alters = frozenset({"delta"})

    def check(self, setup: "Setup") -> None:
        """Refuse rates outside (0, 1), and a solver that cannot be steered.

        Raises:
            UsageError: naming them.
        """
        if not (0 < self.fpr < 1 and 0 < self.inside < 1):
            raise UsageError(f"got fpr={self.fpr} and inside={self.inside} for {self.name}; give both between 0 and 1")
        check_steerable(setup.pipe.scheduler)

    def cost(self, setup: "Setup") -> float:
        """One more run for an image that was flagged in a run without correction."""
        return float(setup.sampling.steps)

    def rule(self, references: Trajectory) -> StabilityRule:
        """The rule with the thresholds of reference runs."""
        scores = [Moments.of(references.norms[name]).z_scores(references.norms[name]).abs() for name in ("delta", "x0")]
        triggers = torch.minimum(*scores).nan_to_num(nan=0.0).amax(dim=1).sort().values
        # as for a conformal p-value; moments and threshold come from the same runs, so the rate is approximate
        place = min(len(triggers), math.ceil((1 - self.fpr) * (len(triggers) + 1))) - 1
        tau = triggers[place].item()
        gamma = torch.stack(scores).flatten().nan_to_num(nan=0.0).sort().values
        return StabilityRule(
            tau_mild=tau,
            tau_strong=0.0,
            gamma=gamma[int(self.inside * (len(gamma) - 1))].item(),
            k=len(references.timesteps),
        )

    def correction(self, references: Trajectory) -> StabilityCorrection:
        """A correction for the runs of one call."""
        return StabilityCorrection(references, self.rule(references))

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make the images once more with the same calls, correcting the runs while they go on."""
        return made(self.prepare(flagged, studio), flagged, studio) if flagged else []

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """The same calls, under the correction."""
        return Prepared([image.call for image in flagged], self.correction(studio.references))
