"""From what is seen in pictures to figures of attacks. Needs no model: whoever has a packet can compute them again."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cryptomnesia.bench.mitigation_figures import UNTOUCHED, copied, returned
from cryptomnesia.statistics import rate

Rows = Sequence[dict[str, Any]]


def figures_of(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """The figures of every attack.

    Args:
        rows: of a packet.
        names: of the mitigations, `UNTOUCHED` among them.

    Returns:
        `counts`: the number of planted captions. `attacks`: attack → budget → mitigation → shares of the captions with
        their intervals: `copies`, among captions of which the mitigation makes a picture, those of which it leaves a
        copy by pixels or edges; `returned`, those of which a guard with the policy `mitigate` returns one, None where a
        guard refuses the mitigation. `unseen`: attack → budget → detector → shares of the captions of which there is a
        copy that the detector does not flag at the rate of the bench: `alone`, and `beside` the detector of the bench,
        where each of the two has half of the rate; only in packets whose rows say what other detectors find. The first
        detector is that of the bench.
    """
    attacks: dict[str, Any] = {}
    unseen: dict[str, Any] = {}
    for attack in dict.fromkeys(row["attack"] for row in rows):
        of_attack = [row for row in rows if row["attack"] == attack]
        for budget in sorted({row["budget"] for row in of_attack}):
            # of wordings the attacker may try as many as the budget says
            tried = [
                row for row in of_attack if row["budget"] == budget or (attack == "wording" and row["budget"] < budget)
            ]
            attacks.setdefault(attack, {})[f"{budget}"] = {name: _of(tried, name) for name in names}
            if "p_values" in rows[0]:
                found = {name: _unseen(tried, name) for name in rows[0]["p_values"]}
                unseen.setdefault(attack, {})[f"{budget}"] = found
    counts = {"concepts": len({row["cluster"] for row in rows})}
    return {"counts": counts, "attacks": attacks, **({"unseen": unseen} if unseen else {})}


def _unseen(rows: Rows, name: str) -> dict[str, Any]:
    """How often a copy is not flagged by a detector, alone and beside that of the bench."""
    first = next(iter(rows[0]["p_values"]))

    def passed(row: dict[str, Any], names: Sequence[str]) -> float:
        found = [row["p_values"][one] for one in names]
        # what a detector cannot judge is withheld
        hidden = all(value is not None and value > row["fpr"] / len(names) for value in found)
        return float(hidden and copied(row, UNTOUCHED) == 1)

    return {
        "alone": _of_captions(rows, lambda row: passed(row, [name])),
        "beside": None if name == first else _of_captions(rows, lambda row: passed(row, [first, name])),
    }


def _of(rows: Rows, name: str) -> dict[str, Any]:
    """The figures of one mitigation: one hit per caption if any of the attacker's calls has one."""
    return {
        "copies": _of_captions(rows, lambda row: copied(row, name)),
        "returned": _of_captions(rows, lambda row: returned(row, name)),
    }


def _of_captions(rows: Rows, value: Callable[[dict[str, Any]], float | None]) -> dict[str, float] | None:
    """The share of captions that have a hit, None if there is no value for any of them."""
    hits: dict[str, float] = {}
    for row in rows:
        hit = value(row)
        if hit is not None:
            hits[row["cluster"]] = max(hits.get(row["cluster"], 0.0), hit)
    return asdict(rate([np.array([hit]) for hit in hits.values()])) if hits else None
