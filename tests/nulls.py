"""Calibrations whose null a test sets, so that it knows which images are flagged."""

from dataclasses import replace

import numpy as np
import torch

from cryptomnesia import Calibration, Detector, EarlyDetail, Stability, StabilityOrDrift

COUNT = 99
"""Scores of a null, of which the highest p-value that is flagged at a rate of 1% is 1/(99 + 1)."""


def with_null(calibration: Calibration, detector: Detector, scores: torch.Tensor) -> Calibration:
    """The calibration with another null of a detector, (n, N)."""
    made = replace(calibration)
    made._nulls.update({**calibration._nulls, detector: scores})
    return made


def flagging(calibration: Calibration, wanted: float, detector: Detector | None = None) -> Calibration:
    """The calibration under which, at a rate of 1%, images with a score of at least `wanted` are flagged."""
    just_below = float(np.nextafter(np.float32(wanted), np.float32(-np.inf)))
    null = torch.full((COUNT, calibration.evaluations), just_below)
    # the default with captions, and the one without
    for judge in (EarlyDetail(), StabilityOrDrift()) if detector is None else (detector,):
        calibration = with_null(calibration, judge, null)
    return calibration


EVERYTHING = -1e9
"""A score that every image reaches."""


def by_norms(calibration: Calibration) -> dict[str, object]:
    """Arguments of a guard that flags every image, and takes it back once the image is corrected by norms."""
    return {"calibration": flagging(calibration, EVERYTHING, Stability()), "detector": "stability"}
