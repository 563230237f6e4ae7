"""What instead? Each mitigation is a context manager around the user's own call."""

from cryptomnesia.mitigate.stability import Correction, StabilityRule, mitigate

__all__ = ["Correction", "StabilityRule", "mitigate"]
