"""Detectors give every image a score of memorization. One file per method; `detector` finds a method by its name."""

from collections.abc import Iterable
from typing import Any

from cryptomnesia.detectors.base import Detector, Moments
from cryptomnesia.detectors.base_difference import BaseDifference
from cryptomnesia.detectors.combined import Combined
from cryptomnesia.detectors.drift import Drift
from cryptomnesia.detectors.early_detail import EarlyDetail
from cryptomnesia.detectors.guidance_magnitude import GuidanceMagnitude
from cryptomnesia.detectors.information import Information
from cryptomnesia.detectors.map_mean import MapMean, MapSignal, during_run
from cryptomnesia.detectors.stability import Stability
from cryptomnesia.detectors.stability_or_drift import StabilityOrDrift
from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create, entries, names

__all__ = [
    "BaseDifference",
    "Combined",
    "Detector",
    "Drift",
    "EarlyDetail",
    "GuidanceMagnitude",
    "Information",
    "MapMean",
    "MapSignal",
    "Moments",
    "Stability",
    "StabilityOrDrift",
    "default_detector",
    "detector",
    "detector_names",
    "detectors_of",
    "during_run",
    "free_detectors",
]

DEFAULTS = ("early-detail", "combined", "stability-or-drift", "stability")
"""Names of the detectors to choose from when none is given; the first that works in the set-up is taken."""


def detector(method: str | Any, setup: Setup | None = None) -> Detector:
    """A detector that was given by name or as an object.

    Args:
        method: the name of a registered detector; the name of a localizer, which stands for the mean of its map;
            `auto` for the default; or an object.
        setup: the set-up that `auto` has to work in. A detector with a method `bound_to(setup)` is what that returns;
            so `BaseDifference` takes its base from the set-up.

    Raises:
        UsageError: for an unknown name, or `auto` without a set-up.
        PluginError: if the package that registers the name cannot be imported.
    """
    found = _named(method, setup)
    bound_to = getattr(found, "bound_to", None)
    return found if setup is None or bound_to is None else bound_to(setup)


def _named(method: str | Any, setup: Setup | None) -> Detector:
    """The detector of a name, or the object that was given."""
    if method == "auto":
        if setup is None:
            raise UsageError("got the detector 'auto' without a set-up to choose it for; name one")
        return default_detector(setup)
    if not isinstance(method, str) or method in entries("detector"):
        found = create("detector", method)
        packages = (
            [entries(kind)[method].package for kind in ("detector", "localizer") if method in entries(kind)]
            if isinstance(method, str)
            else []
        )
        if len(set(packages)) > 1:
            raise UsageError(
                f"the detector {method!r} of the package {packages[0]} has the name of a localizer of {packages[1]}, "
                "whose mean is a detector under that name; rename or uninstall either"
            )
        return found
    if method in entries("localizer"):
        return MapMean(create("localizer", method))
    raise UsageError(f"got the unknown detector {method!r}; known are {', '.join(detector_names())}")


def detectors_of(methods: str | Any | Iterable[str | Any], setup: Setup | None = None) -> list[Detector]:
    """Detectors that were given by name or as objects.

    Args:
        methods: one or several; see `detector`.
        setup: the set-up that `auto` has to work in.

    Raises:
        UsageError: for an unknown name, or `auto` without a set-up.
        PluginError: if the package that registers a name cannot be imported.
    """
    listed = methods if isinstance(methods, Iterable) and not isinstance(methods, str) else [methods]
    return [detector(method, setup) for method in listed]


def default_detector(setup: Setup) -> Detector:
    """The detector that is used when none is given.

    Raises:
        UsageError: if none of `DEFAULTS` works in the set-up.
    """
    found = setup.first_accepted("detector", DEFAULTS)
    if found is None:
        raise UsageError(
            f"none of the detectors {', '.join(DEFAULTS)} works in this set-up; name one of {names('detector')}"
        )
    return found


def detector_names() -> list[str]:
    """The names of all detectors, then those of localizers, which stand for the mean of a map; imports nothing."""
    return [*entries("detector"), *(name for name in entries("localizer") if name not in entries("detector"))]


def free_detectors(setup: Setup) -> list[Detector]:
    """The registered detectors that work in a set-up and read nothing but norms, so that they cost nothing.

    A detector whose package cannot be loaded is left out: nobody asked for it.
    """
    found = []
    for name, entry in entries("detector").items():
        if entry.state == "ready":
            made = create("detector", name)
            if setup.accepts(made) and made.cost(setup) == 0 and not made.signals:
                found.append(made)
    return found
