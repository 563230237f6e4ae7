"""A verdict as columns of a row, one for every field, and the names of further columns."""

from dataclasses import fields
from typing import Any

from cryptomnesia.verdicts import Verdict

SCORE, P_VALUE = "score:", "p_value:"
"""What the names of columns begin with that hold the score or p-value of a detector."""

RETURNED = "returned_"
"""What the names of columns begin with that hold the match of what a guard returned."""

VERDICT = tuple(field.name for field in fields(Verdict) if field.name not in ("image", "prompt"))
"""The columns of a verdict: its fields, without its place in a call and its prompt, which the run knows itself."""


def verdict_columns(verdict: Verdict) -> dict[str, Any]:
    """A verdict as columns of a row."""
    return {name: list(value) if isinstance(value := getattr(verdict, name), tuple) else value for name in VERDICT}


def verdict_of(row: dict[str, Any], number: int) -> Verdict:
    """The verdict in the columns of a row, the `number`th of the run."""
    values: dict[str, Any] = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in VERDICT}
    return Verdict(image=number, prompt=row["prompt"], **values)
