"""What instead? Each mitigation is a context manager around the user's own call."""

from cryptomnesia.mitigate.stability import Correction, StabilityRule, check_steerable, stabilize

__all__ = ["Correction", "StabilityRule", "check_steerable", "stabilize"]
