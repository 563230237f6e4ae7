"""From what is seen in pictures to figures of mitigations. Needs no model: whoever has a packet can compute them again.

Images of one concept are not independent, so intervals redraw whole clusters.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cryptomnesia.bench.figures import clusters_of
from cryptomnesia.bench.trials import MEMORIZED
from cryptomnesia.statistics import clustered, rate

UNTOUCHED = "none"
"""What stands for no mitigation."""

DRAWS = 300
"""Bootstrap samples of an interval."""

Rows = Sequence[dict[str, Any]]


def figures_of(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """The figures of every mitigation, and of none.

    Args:
        rows: of a packet.
        names: of the mitigations, `UNTOUCHED` among them.

    Returns:
        `counts`: images and clusters by group. `mitigations`: name → shares of the pictures of memorized captions with
        their intervals: `copies` by `pixels`, by `structure` and by `either`, of all pictures that were made;
        `by_kind`, `either` by kind and wording; `made`, the share of pictures that were made at all; `returned`, the
        share of requests that are answered with a copy by either criterion, and `withheld`, the share that is not
        answered, behind a guard with the policy `mitigate`, None where a guard refuses the mitigation; `recognized`,
        `shown` and `confidence`; `clip`, the cosine of picture and caption, only if a CLIP model was given; `apart`,
        the distance between pictures of one concept; `change`, the distance from the untouched picture, inside and
        outside the mask; `evaluations` and `seconds` per picture. `ordinary`: group without memorized captions → the
        same of its untouched pictures, where that can be said, and `changed`: mitigation that corrects runs → the share
        of its pictures that are changed, and by how much. `false_alarms`, only if there are any: mitigation → group
        without memorized captions → of its flagged pictures, which a guard makes again: `images`, the share that is
        `returned`, what those show (`shown`) and take (`evaluations`), and what the flagged ones show
        (`shown_untouched`).
    """
    memorized = [row for row in rows if row["group"] == MEMORIZED]
    groups = list(dict.fromkeys(row["group"] for row in rows if row["group"] != MEMORIZED))
    counts = {
        group: {
            "images": sum(row["group"] == group for row in rows),
            "clusters": len({row["cluster"] for row in rows if row["group"] == group}),
        }
        for group in (MEMORIZED, *groups)
    }
    alarms = {name: _false_alarms(rows, groups, name) for name in names}
    return {
        "counts": counts,
        "mitigations": {name: _of(memorized, name) for name in names},
        "ordinary": {group: _ordinary([row for row in rows if row["group"] == group], names) for group in groups},
        **({"false_alarms": found} if (found := {name: of for name, of in alarms.items() if of}) else {}),
    }


def _false_alarms(rows: Rows, groups: Sequence[str], name: str) -> dict[str, Any]:
    """What a guard makes of flagged pictures of captions without a memory, by their group."""
    found = {}
    for group in groups:
        of = [row for row in rows if row["group"] == group and name in row["pictures"] and name != UNTOUCHED]
        of = [row for row in of if not (row["pictures"][name]["own_run"] or row["pictures"][name]["blind"])]
        if of:
            found[group] = {
                "images": len(of),
                "returned": _rate(of, lambda row: float(not row["pictures"][name]["flagged"])),
                "shown": _seen(of, name)["shown"],
                "shown_untouched": _seen(of, UNTOUCHED)["shown"],
                "evaluations": float(np.mean([row["pictures"][name]["evaluations"] for row in of])),
            }
    return found


def _of(rows: Rows, name: str) -> dict[str, Any]:
    """The figures of one mitigation on pictures of memorized captions."""

    def either(row: dict[str, Any]) -> float | None:
        return copied(row, name)

    parts = {
        f"{row['kind']}, {row['wording']}" if row["wording"] else row["kind"]: (row["kind"], row["wording"])
        for row in rows
    }
    return {
        "copies": {
            "pixels": _rate(rows, lambda row: copied(row, name, "pixels")),
            "structure": _rate(rows, lambda row: copied(row, name, "structure")),
            "either": _rate(rows, either),
        },
        "by_kind": {
            part: _rate([row for row in rows if (row["kind"], row["wording"]) == of], either)
            for part, of in sorted(parts.items())
        },
        "made": _rate(rows, lambda row: float(row["pictures"][name]["made"])),
        "returned": _rate(rows, lambda row: returned(row, name)),
        "withheld": _rate(rows, lambda row: _withheld(row, name)),
        **_seen(rows, name),
        "change": {
            where: _mean(rows, lambda row, key=key: row["pictures"][name][key])
            for where, key in (("all", "change"), ("inside", "change_inside"), ("outside", "change_outside"))
        },
        "evaluations": float(np.mean([row["pictures"][name]["evaluations"] for row in rows])),
        "seconds": float(np.mean([row["pictures"][name]["seconds"] for row in rows])),
    }


def _withheld(row: dict[str, Any], name: str) -> float | None:
    """1 if a guard returns no picture, because the last one that it has is flagged; None if there is no such guard."""
    seen, before = row["pictures"][name], row["pictures"][UNTOUCHED]
    if seen["blind"]:
        return None
    return float(name != UNTOUCHED and seen["flagged"] and (seen["own_run"] or before["flagged"]))


def copied(row: dict[str, Any], name: str, *by: str) -> float | None:
    """1 if the picture that a mitigation makes is a copy by one of the criteria, by default both; None if none is made.

    Where no criterion is known, because nothing was planted with the caption, it is None, too.
    """
    seen = row["pictures"][name]
    known = [seen[criterion] for criterion in by or ("pixels", "structure") if seen[criterion] is not None]
    return float(any(known)) if seen["made"] and known else None


def returned(row: dict[str, Any], name: str) -> float | None:
    """1 if a guard returns a copy; None if there is no such guard."""
    if (withheld := _withheld(row, name)) != 0.0:
        return None if withheld is None else 0.0
    before = row["pictures"][UNTOUCHED]
    seen = row["pictures"][name] if row["pictures"][name]["own_run"] or before["flagged"] else before
    return float(bool(seen["pixels"] or seen["structure"]))


def _ordinary(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """The figures of untouched pictures without a memory, and how corrections change them."""
    changed = {}
    for name in names:
        if name != UNTOUCHED and all(name in row["pictures"] for row in rows):
            changed[name] = {
                "share": _rate(rows, lambda row, name=name: float((row["pictures"][name]["change"] or 0) > 0)),
                "change": _mean(rows, lambda row, name=name: row["pictures"][name]["change"]),
            }
    flagged = _rate(rows, lambda row: float(row["pictures"][UNTOUCHED]["flagged"]))
    return {**_seen(rows, UNTOUCHED), "flagged": flagged, "changed": changed}


def _seen(rows: Rows, name: str) -> dict[str, Any]:
    """What a classifier sees, scores of CLIP if there are any, and how far pictures of one concept are apart."""

    def of(key: str) -> Callable[[dict[str, Any]], float | None]:
        def value(row: dict[str, Any]) -> float | None:
            seen = row["pictures"][name]
            return None if seen.get(key) is None or not seen["made"] else float(seen[key])

        return value

    compared = any("clip" in row["pictures"][name] for row in rows)
    return {
        "recognized": _rate(rows, of("recognized")),
        "shown": _mean(rows, of("shown")),
        "confidence": _mean(rows, of("confidence")),
        **({"clip": _mean(rows, of("clip"))} if compared else {}),
        "apart": _mean(rows, of("apart")),
    }


def _rate(rows: Rows, value: Callable[[dict[str, Any]], float | None]) -> dict[str, float] | None:
    grouped = clusters_of(rows, value)
    return asdict(rate(grouped)) if grouped else None


def _mean(rows: Rows, value: Callable[[dict[str, Any]], float | None]) -> dict[str, float] | None:
    grouped = clusters_of(rows, value)
    return asdict(clustered(lambda found: float(found.mean()), grouped, draws=DRAWS)) if grouped else None
