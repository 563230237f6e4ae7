"""Where in the picture? One file per method; `LOCALIZERS` names them."""

from collections.abc import Callable

from cryptomnesia.localize.base import Localizer, Watched, upsampled
from cryptomnesia.localize.baseline import Baseline, checkpoint, conditioning, empty_caption
from cryptomnesia.localize.bright_ending import BrightEnding, end_positions
from cryptomnesia.localize.curvature import Curvature, CurvatureDifference
from cryptomnesia.localize.diagonal import Diagonal, DiagonalEstimator
from cryptomnesia.localize.mask import MapReference, Mask
from cryptomnesia.localize.score_difference import GuidanceMap, ScoreDifference

__all__ = [
    "LOCALIZERS",
    "Baseline",
    "BrightEnding",
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

LOCALIZERS: dict[str, Callable[..., Localizer]] = {
    each.name: each for each in (CurvatureDifference, ScoreDifference, GuidanceMap, Curvature, BrightEnding)
}
"""Name on the command line → how to make the localizer; `step` chooses the evaluation."""
