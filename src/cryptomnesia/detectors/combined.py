"""Combined: the stability score against pictures of equal detail, and the guidance magnitude, in one number.

A method of this library. A plain picture has extreme update norms for an innocent reason, so the stability score
(arXiv:2605.22050) takes it for memorized. Here its logarithm is compared with that of reference pictures with as much
detail: over the reference runs it is fitted by a quadratic function of the log detail, and what is above the fit, in
its standard deviations, counts. To this is added twice the z-score of the logarithm of the guidance magnitude
(arXiv:2407.21720), averaged over the evaluations so far. Both are known at every evaluation and cost no evaluation of
the network.

The detail of a picture is the mean of log(1 + |∇x̂_0|/0.01) over the neighbours of its estimate; it grows with the
length of a code of the picture. Beyond the plainest and the most detailed reference picture the fit is not continued.

The weight 2 and the quadratic function were chosen on a model of drawn scenes, before the ground `drawings` was looked
at. `information` in the place of the guidance magnitude did better on `scenes` and worse on `drawings`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector, Moments, check_evaluations
from cryptomnesia.detectors.guidance_magnitude import GuidanceMagnitude
from cryptomnesia.detectors.stability import Stability
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.trajectory import Trajectory

LEAST_SPREAD = 0.01
"""Smallest standard deviation of a logarithm: a change by a hundredth counts as no change."""

_LEAST = 1e-12
"""Below this a norm has no logarithm."""


@dataclass(frozen=True)
class Combined(Detector):
    """z-score of the log stability score given the log detail, plus `weight` times that of the log guidance magnitude.

    Attributes:
        weight: of the guidance magnitude.
    """

    weight: float = 2.0

    name = "combined"
    summary = "The stability score against pictures of equal detail, and the guidance magnitude, in one number."
    source = "this library, from arXiv:2605.22050 and arXiv:2407.21720"
    use_when = "The runs have an unconditional branch, and the captions that you judge may ask for plain pictures."
    avoid_when = (
        "The runs have no unconditional branch (Flux, unconditional models, guidance 1); use `stability` there."
    )
    reads = frozenset({"delta", "detail", "guidance"})

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score after every evaluation, (B, N); NaN without an unconditional branch."""
        check_evaluations(runs, references)
        detail, stability, guidance = _logs(runs, references)
        usual_detail, usual_stability, usual_guidance = _logs(references, references)
        above = unexplained(stability, detail, usual_stability, usual_detail)
        more = Moments.of(usual_guidance, LEAST_SPREAD).z_scores(guidance)
        return (above + self.weight * more).float()


def _logs(runs: Trajectory, references: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms of detail, stability score and mean guidance magnitude of runs, (B, N) each."""
    of = runs.norms["detail"], Stability().running(runs, references), GuidanceMagnitude().running(runs, references)
    detail, stability, guidance = (values.double().clamp_min(_LEAST).log() for values in of)
    return detail, stability, guidance


def unexplained(values: Tensor, by: Tensor, usual: Tensor, usual_by: Tensor) -> Tensor:
    """What a quadratic function of another quantity leaves unexplained of values, as z-scores, (B, N).

    Args:
        values: of runs, (B, N).
        by: the other quantity of the same runs. Outside its range over the reference runs the function is constant.
        usual: values of reference runs (n, N′ ≥ N), to which the function is fitted at every evaluation.
        usual_by: the other quantity of these.
    """
    count = values.shape[1]
    usual, usual_by = usual[:, :count], usual_by[:, :count]
    moments = Moments.of(usual_by, LEAST_SPREAD)
    low, high = usual_by.amin(dim=0), usual_by.amax(dim=0)

    def powers(of: Tensor) -> Tensor:
        """The terms of the function, (N, runs, 3)."""
        scaled = moments.z_scores(of.clamp(low, high)).T
        return torch.stack([torch.ones_like(scaled), scaled, scaled**2], dim=-1)

    terms = powers(usual_by)
    # the small number keeps a quantity that is the same in all reference runs from having no solution
    normal = terms.mT @ terms + 1e-9 * len(usual) * torch.eye(3, dtype=terms.dtype)
    weights = torch.linalg.solve(normal, terms.mT @ usual.T.unsqueeze(-1))

    def left(of: Tensor, given: Tensor) -> Tensor:
        return of - (powers(given) @ weights).squeeze(-1).T

    return Moments.of(left(usual, usual_by), LEAST_SPREAD).z_scores(left(values, by))
