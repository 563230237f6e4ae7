"""Where is it memorized? One file per method; every map is (B, h, w) at latent resolution."""

from cryptomnesia.localize.base import Localizer, upsampled
from cryptomnesia.localize.curvature import CurvatureDifference
from cryptomnesia.localize.score_difference import ScoreDifference

__all__ = ["CurvatureDifference", "Localizer", "ScoreDifference", "upsampled"]
