"""Is it memorized? One file per method; `DETECTORS` names them."""

from collections.abc import Callable

from cryptomnesia.detectors.base import Detector, Reference
from cryptomnesia.detectors.drift import Drift
from cryptomnesia.detectors.guidance_magnitude import GuidanceMagnitude, LastGuidance
from cryptomnesia.detectors.stability import Stability

__all__ = ["DETECTORS", "Detector", "Drift", "GuidanceMagnitude", "LastGuidance", "Reference", "Stability"]

DETECTORS: dict[str, Callable[[Reference], Detector]] = {
    "stability": Stability,
    "drift": Drift,
    "guidance-first": lambda _: GuidanceMagnitude(steps=1),
    "guidance-mean": lambda _: GuidanceMagnitude(),
    "guidance-last": lambda _: LastGuidance(),
}
"""Name on the command line → how to make the detector from the reference statistics."""
