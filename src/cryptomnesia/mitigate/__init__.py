"""What instead? Each mitigation is a context manager around the user's own call."""

from cryptomnesia.mitigate.rephrasing import Rephrasing
from cryptomnesia.mitigate.stability import Correction, StabilityRule, stabilize

__all__ = ["Correction", "Rephrasing", "StabilityRule", "stabilize"]
