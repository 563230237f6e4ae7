"""What instead? Rules for a flagged image: correct the run itself, or make it again with other words."""

from cryptomnesia.mitigations.rephrasing import Rephrasing
from cryptomnesia.mitigations.stability import Correction, StabilityRule, stabilize

__all__ = ["Correction", "Rephrasing", "Rule", "StabilityRule", "default_rule", "stabilize"]

Rule = StabilityRule | Rephrasing


def default_rule(*, conditional: bool, batch: int = 8) -> Rule:
    """The rule for models with captions, or without; `batch` images go into one call of the pipeline at most."""
    return Rephrasing(batch=batch) if conditional else StabilityRule()
