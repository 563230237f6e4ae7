"""What instead? One file per method; `mitigation` finds a method by its name."""

from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Correction, Flagged, Mitigation, Remade, Studio
from cryptomnesia.mitigations.rephrasing import Rephrasing
from cryptomnesia.mitigations.stability import StabilityCorrection, StabilityRule, stabilize
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create

__all__ = [
    "Correction",
    "Flagged",
    "Mitigation",
    "Remade",
    "Rephrasing",
    "StabilityCorrection",
    "StabilityRule",
    "Studio",
    "default_mitigation",
    "mitigation",
    "stabilize",
]

DEFAULTS = ("rephrasing", "stability")
"""Names of the mitigations to choose from when none is given; the first that works in the set-up is taken."""


def mitigation(method: str | Any, setup: Setup) -> Mitigation:
    """A mitigation that was given by name or as an object, seen to work in a set-up; `auto` for the default.

    Raises:
        UsageError: for one that is unknown or cannot work.
        PluginError: if the package that registers the name cannot be imported.
    """
    if method == "auto":
        return default_mitigation(setup)
    found = create("mitigation", method)
    setup.check([found])
    return found


def default_mitigation(setup: Setup) -> Mitigation:
    """The mitigation that is used when none is given.

    Raises:
        UsageError: if none works in the set-up.
    """
    for name in DEFAULTS:
        found = create("mitigation", name)
        if setup.accepts(found):
            return found
    raise UsageError(f"none of the mitigations {', '.join(DEFAULTS)} works in this set-up; name another, or use none")
