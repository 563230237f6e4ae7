"""Drift: how far the conditional estimate of the clean latents moves from one evaluation to the next.

A generation settles on its picture when the posterior of x_0 collapses, and while this happens the conditional estimate
x̂_0 moves. With an ordinary caption it happens in the middle of the run. With a memorized caption a single picture is
left almost from the beginning: x̂_0 moves early, when the estimates of other captions hardly move. For a perfect
memorizer it does not move at all.

Let u_t be the deviation of the mean of log‖x̂_0(s) − x̂_0(s+1)‖ over s ≤ t from its mean over reference runs, in their
standard deviations. The score is max_t max(u_t, −u_t/3). Like the stability score (arXiv:2605.22050) it is the maximum
so far and known at every evaluation, but it measures the model's estimate instead of the solver's latents. It uses the
mean because neighbouring evaluations are strongly correlated. A deviation below the mean counts a third, because the
estimates of plain pictures move little for an innocent reason. The mean and the third were chosen on those planted
pictures of the bundled model that it knows in part but does not reproduce; results are reported on the others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector, Moments, check_evaluations
from cryptomnesia.tracing.trajectory import Trajectory

STILL = 1e-3
"""Movement of the estimate, relative to its norm, below which it counts as standing still: rounding hides the rest."""

LEAST_SPREAD = 0.1
"""Smallest standard deviation of the mean logarithm: a change of the movement by a tenth counts as no change."""


@dataclass(frozen=True)
class Drift(Detector):
    """Largest deviation of the mean log movement from its mean over reference runs, in standard deviations, ≥ 0.

    Attributes:
        less: a deviation below the mean is divided by this number.
    """

    less: float = 3.0

    name = "drift"
    summary = "How early the model's estimate of the picture settles, compared with ordinary prompts."
    source = "this library"
    use_when = (
        "You have to decide early: there is a score from the second evaluation on. It costs nothing, and is a part of "
        "`stability-or-drift`."
    )
    avoid_when = (
        "You have not compared it with other detectors on your model. `drift` was developed on the bundled model; on "
        "the ground `drawings`, which took no part, it is far behind `stability` and `guidance-mean`. It cannot judge "
        "after a single evaluation."
    )
    reads = frozenset({"drift", "x0"})

    def earliest(self, evaluations: int) -> int:
        """2, because an estimate can have moved only from the second evaluation on."""
        return 2

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The largest deviation so far, (B, N); 0 at the first evaluation, when no estimate has moved yet."""
        check_evaluations(runs, references)
        u = Moments.of(mean_log_drift(references), LEAST_SPREAD).z_scores(mean_log_drift(runs))
        u[:, 0] = 0
        return torch.maximum(u, -u / self.less).cummax(dim=1).values


def mean_log_drift(runs: Trajectory) -> Tensor:
    """The mean logarithm of the movement so far, (B, N); 0 at the first evaluation."""
    drift, x0 = runs.norms["drift"], runs.norms["x0"]
    moved = torch.maximum(drift, STILL * x0).clamp_min(1e-12).log()[:, 1:]
    so_far = moved.cumsum(dim=1) / torch.arange(1, moved.shape[1] + 1)
    return torch.cat([torch.zeros_like(drift[:, :1]), so_far], dim=1)
