"""Stability regions (arXiv:2605.22050): a memorized generation leaves the usual range of update norms.

δ_t = z_{t−1} − z_t is the update of the latents. With the mean μ_t and the standard deviation σ_t of ‖δ_t‖ over
reference runs, the score of a step is s_t = |‖δ_t‖ − μ_t|/σ_t, and the score of the image is S = max_t s_t. The maximum
of the steps so far is a score at every step, so an image can be judged while it is made.

`stability-first` takes the maximum over the first fifth of the run alone, ten steps of fifty: up to there the paper's
mild correction acts.
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.detectors.base import Detector, Moments, check_evaluations, counted
from cryptomnesia.tracing.trajectory import Trajectory


@dataclass(frozen=True)
class Stability(Detector):
    """Largest deviation of ‖δ_t‖ from its mean over reference runs, in standard deviations, ≥ 0."""

    name = "stability"
    summary = "The largest deviation of the latents' update norm from its usual range, over the steps so far."
    source = "arXiv:2605.22050"
    use_when = (
        "You compare with the published method under PNDM, the scheduler of Stable Diffusion 1.4. It is known after "
        "every step."
    )
    avoid_when = (
        "Your scheduler adds noise or is DDIM: on the bundled model it separates little under Euler ancestral and "
        "DDIM. Use `early-detail`, or `stability-or-drift` without captions. Plain pictures have extreme norms "
        "without being memorized, so the reference prompts have to give pictures as plain as those that you judge."
    )
    reads = frozenset({"delta"})

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """Max over s ≤ t of |‖δ_s‖ − μ_s|/σ_s, (B, N)."""
        check_evaluations(runs, references)
        scores = Moments.of(references.norms["delta"]).z_scores(runs.norms["delta"])
        return scores.abs().cummax(dim=1).values


@dataclass(frozen=True)
class StabilityFirst(Stability):
    """The stability score of the first evaluations of a run, in standard deviations, ≥ 0.

    Attributes:
        share: of the run that counts, above 0 and up to 1; at least one evaluation does.
    """

    share: float = 0.2

    name = "stability-first"
    summary = "The largest deviation of the latents' update norm from its usual range, over the first steps alone."
    use_when = "You have to decide early in the run, and what an image does later must not change its score."
    avoid_when = "The pictures are made from captions alone: then `early-detail` separates better, as early."

    @property
    def observes(self) -> str:
        """The updates of the latents, as `stability` does: the two do not corroborate each other."""
        return "stability"

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            UsageError: if it is not above 0, or above 1.
        """
        counted(self.share, 1)

    def earliest(self, evaluations: int) -> int:
        """The number of evaluations that count."""
        return counted(self.share, evaluations)

    def settled(self, evaluations: int) -> int:
        """The number of evaluations that count."""
        return counted(self.share, evaluations)

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """Max over s ≤ t of |‖δ_s‖ − μ_s|/σ_s of the evaluations that count, (B, N)."""
        scores = super().running(runs, references)
        last = self.earliest(len(runs.timesteps))
        if scores.shape[1] > last:
            scores[:, last:] = scores[:, last - 1 : last]
        return scores
