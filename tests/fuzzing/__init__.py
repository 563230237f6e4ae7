"""Damaged, edited and invented inputs for everything that the library reads.

Every input is either used or refused by a `UsageError` of one line. `fuzz` counts what happened; a test fails for every
other error. The inputs of one seed are always the same.
"""

from fuzzing.harness import AREAS, Counts, fuzz

__all__ = ["AREAS", "Counts", "fuzz"]
