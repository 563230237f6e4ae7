"""What is usual for a set-up: reference runs, conformal p-values, verdicts and masks."""

from cryptomnesia.calibration.fitting import calibrate
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.masks import Mask, ReferenceMaps
from cryptomnesia.calibration.stored import Calibration

__all__ = ["Calibration", "Judge", "Mask", "ReferenceMaps", "calibrate"]
