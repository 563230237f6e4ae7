"""From what is seen in pictures to figures of attacks. Needs no model: whoever has a packet can compute them again."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cryptomnesia.bench.mitigation_figures import copied, returned
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
        guard refuses the mitigation.
    """
    attacks: dict[str, Any] = {}
    for attack in dict.fromkeys(row["attack"] for row in rows):
        of_attack = [row for row in rows if row["attack"] == attack]
        for budget in sorted({row["budget"] for row in of_attack}):
            # of wordings the attacker may try as many as the budget says
            tried = [
                row for row in of_attack if row["budget"] == budget or (attack == "wording" and row["budget"] < budget)
            ]
            attacks.setdefault(attack, {})[f"{budget}"] = {name: _of(tried, name) for name in names}
    return {"counts": {"concepts": len({row["cluster"] for row in rows})}, "attacks": attacks}


def _of(rows: Rows, name: str) -> dict[str, Any]:
    """The figures of one mitigation: one hit per caption if any of the attacker's calls has one."""
    found: dict[str, Any] = {}
    for key, value in (("copies", copied), ("returned", returned)):
        hits: dict[str, float] = {}
        for row in rows:
            hit = value(row, name)
            if hit is not None:
                hits[row["cluster"]] = max(hits.get(row["cluster"], 0.0), hit)
        found[key] = asdict(rate([np.array([hit]) for hit in hits.values()])) if hits else None
    return found
