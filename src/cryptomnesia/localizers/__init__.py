"""Where in the picture? One file per method; `LOCALIZERS` names them."""

from cryptomnesia.calibration.masks import MapReference, Mask
from cryptomnesia.localizers.base import Localizer, Watched, upsampled
from cryptomnesia.localizers.baseline import Baseline, checkpoint, conditioning, empty_caption
from cryptomnesia.localizers.bright_ending import BrightEnding, end_positions
from cryptomnesia.localizers.collapse import Collapse
from cryptomnesia.localizers.curvature import Curvature, CurvatureDifference
from cryptomnesia.localizers.jacobian.diagonal import Diagonal, DiagonalEstimator
from cryptomnesia.localizers.score_difference import GuidanceMap, ScoreDifference

__all__ = [
    "LOCALIZERS",
    "Baseline",
    "BrightEnding",
    "Collapse",
    "Curvature",
    "CurvatureDifference",
    "Diagonal",
    "DiagonalEstimator",
    "GuidanceMap",
    "Localizer",
    "MapReference",
    "Mask",
    "ScoreDifference",
    "Watched",
    "checkpoint",
    "conditioning",
    "empty_caption",
    "end_positions",
    "upsampled",
]

LOCALIZERS: dict[
    str, type[Collapse | CurvatureDifference | ScoreDifference | GuidanceMap | Curvature | BrightEnding]
] = {each.name: each for each in (Collapse, CurvatureDifference, ScoreDifference, GuidanceMap, Curvature, BrightEnding)}
"""Name on the command line → the localizer, the default first; `step` chooses the evaluation."""
