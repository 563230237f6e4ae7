"""Find, map and stop memorized training images in diffusion models.

Names are loaded on first use, so importing the package loads neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptomnesia.calibration.maps import MapCalibration
    from cryptomnesia.calibration.scores import Calibration
    from cryptomnesia.detection import Finding, examine
    from cryptomnesia.detectors import Drift, GuidanceMagnitude, Stability
    from cryptomnesia.errors import CryptomnesiaError, UsageError
    from cryptomnesia.guarding.guarded import Guard, guard
    from cryptomnesia.guarding.making import Verdict
    from cryptomnesia.localization import localize
    from cryptomnesia.localizers import Collapse, CurvatureDifference, ScoreDifference
    from cryptomnesia.mitigations import Rephrasing, StabilityRule, stabilize
    from cryptomnesia.pipelines.loading import load_pipeline
    from cryptomnesia.settings import Sampling
    from cryptomnesia.tracing.generation import generate
    from cryptomnesia.tracing.trajectory import Step, Trajectory
    from cryptomnesia.tracing.watching import watch

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "calibration.scores",
    "Collapse": "localizers",
    "CryptomnesiaError": "errors",
    "CurvatureDifference": "localizers",
    "Drift": "detectors",
    "Finding": "detection",
    "Guard": "guarding.guarded",
    "GuidanceMagnitude": "detectors",
    "MapCalibration": "calibration.maps",
    "Rephrasing": "mitigations",
    "Sampling": "settings",
    "ScoreDifference": "localizers",
    "Stability": "detectors",
    "StabilityRule": "mitigations",
    "Step": "tracing.trajectory",
    "Trajectory": "tracing.trajectory",
    "UsageError": "errors",
    "Verdict": "guarding.making",
    "examine": "detection",
    "generate": "tracing.generation",
    "guard": "guarding.guarded",
    "localize": "localization",
    "load_pipeline": "pipelines.loading",
    "stabilize": "mitigations",
    "watch": "tracing.watching",
}

__all__ = [
    "Calibration",
    "Collapse",
    "CryptomnesiaError",
    "CurvatureDifference",
    "Drift",
    "Finding",
    "Guard",
    "GuidanceMagnitude",
    "MapCalibration",
    "Rephrasing",
    "Sampling",
    "ScoreDifference",
    "Stability",
    "StabilityRule",
    "Step",
    "Trajectory",
    "UsageError",
    "Verdict",
    "examine",
    "generate",
    "guard",
    "load_pipeline",
    "localize",
    "stabilize",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
