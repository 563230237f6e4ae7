"""Which detectors a mitigation blinds."""

from typing import TYPE_CHECKING

from cryptomnesia.tracing.trajectory import NORMS

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector

LATE = 0.8
"""Share of the run behind which a signal counts as late."""


def reads_early(detector: "Detector") -> bool:
    """Whether a detector reads norms, which cover the run from its beginning, or signals from before its last fifth."""
    places = [place for signal in detector.signals for place in signal.evaluations]
    early = any(place < LATE if isinstance(place, float) else place >= 0 for place in places)
    return early or bool(detector.reads & NORMS.keys()) or bool(detector.norms)
