"""Combined: three detectors that cost nothing in one number, which is known after every evaluation.

A method of this library: the mean of three z-scores of logarithms over the reference runs, with equal weights.

- The stability score (arXiv:2605.22050) against pictures of equal detail. A plain picture has extreme update norms for
  an innocent reason, so over the reference runs the score is fitted by a quadratic function of the log detail, and what
  is above the fit counts. The detail of a picture is the mean of log(1 + |∇x̂_0|/0.01) over the neighbours of its
  estimate; it grows with the length of a code of the picture. Beyond the plainest and the most detailed reference
  picture the fit is not continued.
- The guidance magnitude (arXiv:2407.21720), averaged over the evaluations so far.
- The information of the caption. Captions that fix most pixels have a large guidance magnitude and a high stability
  score, but tell little.

The parts were chosen on the grounds `scenes` and `drawings`, where two other versions were tried: with twice the
guidance magnitude and without the information, and with twice the information and without the guidance magnitude.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Detector, Moments, check_evaluations
from cryptomnesia.detectors.guidance_magnitude import GuidanceMagnitude
from cryptomnesia.detectors.information import Information
from cryptomnesia.detectors.stability import Stability
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.trajectory import Trajectory

LEAST_SPREAD = 0.01
"""Smallest standard deviation of a logarithm: a change by a hundredth counts as no change."""

_LEAST = 1e-12
"""Below this a norm has no logarithm."""


@dataclass(frozen=True)
class Combined(Detector):
    """The mean of three z-scores: of stability at equal detail, of guidance magnitude, and of information."""

    name = "combined"
    summary = "Stability against pictures of equal detail, guidance magnitude and information, in one number."
    source = "this library, from arXiv:2605.22050 and arXiv:2407.21720"
    use_when = (
        "The runs have an unconditional branch and begin from a picture, where `early-detail` does not work; or a "
        "score has to follow the whole run."
    )
    avoid_when = (
        "The runs have no unconditional branch (Flux, unconditional models, guidance 1); use `early-detail` or "
        "`stability-or-drift` there. The model was fine-tuned on few pictures: on two LoRAs of 24 pictures it catches "
        "next to nothing; match their images with the training pictures. It was chosen on two small models, so compare "
        "it with other detectors on yours."
    )
    reads = frozenset({"delta", "detail", "guidance", "information"})

    @property
    def observes(self) -> str:
        """The difference of the two branches, as `guidance-mean`: the two do not corroborate each other."""
        return "guidance-mean"

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    def running(self, runs: Trajectory, references: Trajectory) -> Tensor:
        """The score after every evaluation, (B, N); NaN without an unconditional branch."""
        check_evaluations(runs, references)
        detail, stability, *others = _logs(runs, references)
        usual_detail, usual_stability, *usual_others = _logs(references, references)
        above = unexplained(stability, detail, usual_stability, usual_detail)
        for found, usual in zip(others, usual_others, strict=True):
            above = above + Moments.of(usual, LEAST_SPREAD).z_scores(found)
        return (above / (1 + len(others))).float()


def _logs(runs: Trajectory, references: Trajectory) -> list[Tensor]:
    """The logarithms of detail, stability score, mean guidance magnitude and information of runs, (B, N) each."""
    judges = Stability(), GuidanceMagnitude(), Information()
    values = [runs.norms["detail"], *(judge.running(runs, references) for judge in judges)]
    return [logarithm(found) for found in values]


def logarithm(values: Tensor) -> Tensor:
    """The logarithm of norms or scores ≥ 0, in double precision."""
    return values.double().clamp_min(_LEAST).log()


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
