"""Drift: how far the conditional estimate of the clean latents moves from one evaluation to the next.

A generation settles on its picture when the posterior of x_0 collapses, and while this happens the conditional estimate
x̂_0 moves. With an ordinary caption it happens in the middle of the run. With a memorized caption a single picture is
left almost from the beginning: x̂_0 moves early, when the estimates of other captions hardly do; for a perfect memorizer
it never moves.

Let u_t be the deviation of the mean of log‖x̂_0(s) − x̂_0(s+1)‖ over s ≤ t from its mean over reference runs, in their
standard deviations. The score is max_t max(u_t, −u_t/3). Like the stability score (arXiv:2605.22050) it is a maximum so
far, known at every evaluation, but of the model's estimate instead of the solver's latents. It uses the mean because
neighbouring evaluations say nearly the same. Less movement than usual counts a third, because ordinary pictures of plain
captions move little as well. The mean and the third were chosen on the bundled model's rung below the top one, whose
pictures the model knows in part but does not reproduce; figures are reported on the top rung.
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
    """Largest deviation of the mean logarithmic movement from its mean over reference runs, in standard deviations, ≥ 0.

    Attributes:
        less: by how much movement below the usual counts less than movement above it.
    """

    less: float = 3.0

    name = "drift"
    summary = "How early the model's estimate of the picture settles, compared with ordinary prompts."
    source = "this library"
    use_when = (
        "The model reproduces pictures of captions that it otherwise follows only loosely, or the runs have no "
        "unconditional branch. It costs nothing."
    )
    avoid_when = (
        "You need a method that is known to work on many models. `drift` was developed on the bundled model, and on two "
        "other models it was worse than `guidance-mean` and `stability`. It has nothing to judge after one evaluation."
    )
    reads = frozenset({"drift", "x0"})

    def earliest(self, evaluations: int) -> int:
        """Two: there is no movement before."""
        return 2

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The largest deviation so far, (B, N); 0 at the first evaluation, before which nothing moved."""
        check_evaluations(runs, references)
        u = Moments.of(mean_log_drift(references), LEAST_SPREAD).z_scores(mean_log_drift(runs))
        u[:, 0] = 0
        return torch.maximum(u, -u / self.less).cummax(dim=1).values


def mean_log_drift(runs: Trajectory) -> Tensor:
    """The mean logarithm of the movement so far, (B, N), 0 at the first evaluation."""
    drift, x0 = runs.norms["drift"], runs.norms["x0"]
    moved = torch.maximum(drift, STILL * x0).clamp_min(1e-12).log()[:, 1:]
    so_far = moved.cumsum(dim=1) / torch.arange(1, moved.shape[1] + 1)
    return torch.cat([torch.zeros_like(drift[:, :1]), so_far], dim=1)
