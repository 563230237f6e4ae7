"""What instead? Each mitigation is a context manager around the user's own call."""

from cryptomnesia.mitigations.rephrasing import Rephrasing
from cryptomnesia.mitigations.stability import Correction, StabilityRule, stabilize

__all__ = ["Correction", "Rephrasing", "StabilityRule", "stabilize"]
