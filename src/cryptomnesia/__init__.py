"""Find, map and stop memorized training images in diffusion models.

Names are loaded on first use, so importing the package loads neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptomnesia.calibrate import Calibration
    from cryptomnesia.detectors import Drift, GuidanceMagnitude, Stability
    from cryptomnesia.errors import CryptomnesiaError, UsageError
    from cryptomnesia.findings import Finding, examine
    from cryptomnesia.guarding import Guard, guard
    from cryptomnesia.localizers import Collapse, CurvatureDifference, ScoreDifference
    from cryptomnesia.localizing import localize
    from cryptomnesia.making import Verdict
    from cryptomnesia.map_calibration import MapCalibration
    from cryptomnesia.mitigations import Rephrasing, StabilityRule, stabilize
    from cryptomnesia.models import load_pipeline
    from cryptomnesia.sampling import generate
    from cryptomnesia.settings import Sampling
    from cryptomnesia.trajectory import Step, Trajectory
    from cryptomnesia.watching import watch

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "calibrate",
    "Collapse": "localizers",
    "CryptomnesiaError": "errors",
    "CurvatureDifference": "localizers",
    "Drift": "detectors",
    "Finding": "findings",
    "Guard": "guarding",
    "GuidanceMagnitude": "detectors",
    "MapCalibration": "map_calibration",
    "Rephrasing": "mitigations",
    "Sampling": "settings",
    "ScoreDifference": "localizers",
    "Stability": "detectors",
    "StabilityRule": "mitigations",
    "Step": "trajectory",
    "Trajectory": "trajectory",
    "UsageError": "errors",
    "Verdict": "making",
    "examine": "findings",
    "generate": "sampling",
    "guard": "guarding",
    "localize": "localizing",
    "load_pipeline": "models",
    "stabilize": "mitigations",
    "watch": "watching",
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
