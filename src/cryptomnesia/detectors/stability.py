"""Stability regions (arXiv:2605.22050): a memorized generation leaves the usual range of update norms.

δ_t = z_{t−1} − z_t is the update of the latents. With the mean μ_t and the standard deviation σ_t of ‖δ_t‖ over
reference runs, the score of a step is s_t = |‖δ_t‖ − μ_t|/σ_t, and the score of the image is S = max_t s_t. The maximum
of the steps so far is a score at every step, so an image can be judged while it is made.
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.detectors.base import Detector, Moments, check_evaluations
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
        "DDIM. Use `combined`, or `stability-or-drift` where there is no guidance. Plain pictures have extreme norms "
        "without being memorized, so the reference prompts have to give pictures as plain as those that you judge."
    )
    reads = frozenset({"delta"})

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """Max over s ≤ t of |‖δ_s‖ − μ_s|/σ_s, (B, N)."""
        check_evaluations(runs, references)
        scores = Moments.of(references.norms["delta"]).z_scores(runs.norms["delta"])
        return scores.abs().cummax(dim=1).values
