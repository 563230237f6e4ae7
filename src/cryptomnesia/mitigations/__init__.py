"""What to show instead? One file per method; `mitigation` finds a method by its name."""

from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.attention_reweighting import AttentionReweighting
from cryptomnesia.mitigations.base import Correction, Flagged, Mitigation, Prepared, Preparing, Remade, Studio
from cryptomnesia.mitigations.condition_annealing import ConditionAnnealing
from cryptomnesia.mitigations.embedding_descent import EmbeddingDescent
from cryptomnesia.mitigations.guidance_delay import GuidanceDelay
from cryptomnesia.mitigations.initial_noise import InitialNoise
from cryptomnesia.mitigations.pad_tokens import PadTokens
from cryptomnesia.mitigations.partial_captions import PartialCaptions
from cryptomnesia.mitigations.random_tokens import RandomTokens
from cryptomnesia.mitigations.region_restricted import RegionRestricted
from cryptomnesia.mitigations.rephrasing import Rephrasing
from cryptomnesia.mitigations.sail import Sail
from cryptomnesia.mitigations.stability import StabilityCorrection, StabilityRule, stabilize
from cryptomnesia.mitigations.stability_calibrated import StabilityCalibrated
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create

__all__ = [
    "AttentionReweighting",
    "ConditionAnnealing",
    "Correction",
    "EmbeddingDescent",
    "Flagged",
    "GuidanceDelay",
    "InitialNoise",
    "Mitigation",
    "PadTokens",
    "PartialCaptions",
    "Prepared",
    "Preparing",
    "RandomTokens",
    "RegionRestricted",
    "Remade",
    "Rephrasing",
    "Sail",
    "StabilityCalibrated",
    "StabilityCorrection",
    "StabilityRule",
    "Studio",
    "default_mitigation",
    "mitigation",
    "stabilize",
]

DEFAULTS = ("partial-captions", "rephrasing", "stability-published")
"""Names of the mitigations to choose from when none is given; the first that works in the set-up is taken."""


def mitigation(method: str | Any, setup: Setup) -> Mitigation:
    """A mitigation that was given by name or as an object.

    Args:
        method: a registered mitigation, `auto` for the default, or an object.
        setup: in which it has to work.

    Raises:
        UsageError: for an unknown name, a mitigation that cannot work, or `auto` if no default can.
        PluginError: if the package that registers the name cannot be imported.
    """
    if method == "auto":
        found = default_mitigation(setup)
        if found is None:
            raise UsageError(
                f"none of the mitigations {', '.join(DEFAULTS)} works in this set-up; name another one, or use none"
            )
        return found
    found = create("mitigation", method)
    setup.check([found])
    return found


def default_mitigation(setup: Setup) -> Mitigation | None:
    """The mitigation that is used when none is given, None if none of the defaults works in the set-up."""
    return setup.first_accepted("mitigation", DEFAULTS)
