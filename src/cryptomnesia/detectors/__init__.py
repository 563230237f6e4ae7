"""Is it memorized? One file per method; `DETECTORS` names them."""

from collections.abc import Callable
from functools import partial

from cryptomnesia.detectors.base import Detector, Reference
from cryptomnesia.detectors.drift import Drift
from cryptomnesia.detectors.guidance_magnitude import GuidanceMagnitude, LastGuidance
from cryptomnesia.detectors.map_mean import MapMean, MapSignal
from cryptomnesia.detectors.stability import Stability
from cryptomnesia.localizers import LOCALIZERS, BrightEnding

__all__ = [
    "DETECTORS",
    "SIGNALS",
    "Detector",
    "Drift",
    "GuidanceMagnitude",
    "LastGuidance",
    "MapMean",
    "MapSignal",
    "Reference",
    "Stability",
]

SIGNALS: dict[str, MapSignal] = {
    # the run does not say where the caption's end token is, which that map is of
    name: MapSignal(kind())
    for name, kind in LOCALIZERS.items()
    if kind is not BrightEnding
}
"""Name of a detector that looks at kept tensors or asks the network more → what is to be taken while a run goes on."""


def _mean(signal: MapSignal, reference: Reference) -> MapMean:
    return MapMean(signal.localizer, len(reference.delta.mean))


DETECTORS: dict[str, Callable[[Reference], Detector]] = {
    "stability": Stability,
    "drift": Drift,
    "guidance-first": lambda _: GuidanceMagnitude(steps=1),
    "guidance-mean": lambda _: GuidanceMagnitude(),
    "guidance-last": lambda _: LastGuidance(),
    **{name: partial(_mean, signal) for name, signal in SIGNALS.items()},
}
"""Name on the command line → how to make the detector from the reference statistics."""
