"""From scores to figures. Needs no model: whoever has a packet can compute them again.

Images of one concept or caption are not independent, so intervals redraw whole clusters on both sides. Reproduced
pictures are the positives; those of planted captions that were not reproduced are a part of their own. Differences
between two detectors are computed on the same redrawn images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cryptomnesia.bench.trials import MEMORIZED
from cryptomnesia.statistics import auc, clustered, covering_exact, rate, tpr_at_fpr

FPR = 0.01
"""The false-positive rate at which images are flagged."""

DRAWS = 300
"""Bootstrap samples of an interval."""

_LEAST = {"tpr_at_1pct": (0.01, 100), "tpr_at_0.1pct": (0.001, 1_000)}
"""Figure → its false-positive rate, and the fewest negatives of which it can be told."""

Rows = Sequence[dict[str, Any]]


def figures_of(rows: Rows, detectors: Sequence[str]) -> dict[str, Any]:
    """The figures of every detector.

    Args:
        rows: of a packet.
        detectors: names of the detectors.

    Returns:
        `counts`: images and clusters by group, positives in parts. `detectors`: name → `auc`, `tpr_at_1pct` and
        `tpr_at_0.1pct` by part of the positives and group of negatives, each with its 95% interval or None for too few
        negatives; `fpr_met`, the share of every group of negatives that is flagged at `FPR`; `unknown`, the number of
        images without a score. `difference`: the AUC of every detector minus that of the best one, by part, against
        ordinary captions, on the same redrawn images.
    """
    parts = parts_of(rows)
    negatives: dict[str, Rows] = {
        group: [r for r in rows if r["group"] == group] for group in _groups(rows) if group != MEMORIZED
    }
    counts = {name: _counted(found) for name, found in {**parts, **negatives}.items()}
    every: dict[str, Any] = {}
    for name in detectors:
        figures: dict[str, Any] = {figure: {} for figure in ("auc", *_LEAST)}
        for part, positive in parts.items():
            for group, negative in negatives.items():
                one, other = _scores(positive, name), _scores(negative, name)
                for figure, against in figures.items():
                    against.setdefault(part, {})[group] = _figure(figure, one, other)
        flagged = {group: _flagged(found, name) for group, found in negatives.items()}
        every[name] = {**figures, "fpr_met": flagged, "unknown": sum(r["scores"][name] is None for r in rows)}
    return {"counts": counts, "detectors": every, "difference": _differences(parts, negatives, every)}


def parts_of(rows: Rows) -> dict[str, Rows]:
    """The positives in parts: `reproduced` and, of these, by kind and wording; and `not_reproduced`.

    Where it is not known what was reproduced, all positives are `labelled`.
    """
    positive = [row for row in rows if row["group"] == MEMORIZED]
    known = any(row["reproduced"] is not None for row in positive)
    main = [row for row in positive if row["reproduced"]] if known else positive
    parts: dict[str, Rows] = {"reproduced" if known else "labelled": main}
    for column in ("kind", "wording"):
        values = list(dict.fromkeys(row[column] for row in main if row[column]))
        if len(values) > 1:
            parts |= {value: [row for row in main if row[column] == value] for value in values}
    if known:
        parts["not_reproduced"] = [row for row in positive if not row["reproduced"]]
    return {name: part for name, part in parts.items() if part}


def main_part(parts: Mapping[str, Any]) -> str | None:
    """The name of the part that holds all positives which count; None if no planted picture was reproduced."""
    return next((name for name in ("reproduced", "labelled") if name in parts), None)


def main_group(groups: Iterable[str]) -> str:
    """The group of negatives against which detectors are ranked: ordinary captions, or the first where there are none.

    Raises:
        ValueError: without groups.
    """
    names = list(groups)
    if not names:
        raise ValueError("got no group of negatives")
    return "ordinary" if "ordinary" in names else names[0]


def _groups(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["group"] for row in rows))


def _counted(rows: Rows) -> dict[str, int]:
    return {"images": len(rows), "clusters": len({row["cluster"] for row in rows})}


def clusters_of(rows: Rows, value: Callable[[dict[str, Any]], Any]) -> list[np.ndarray]:
    """A value of every row, grouped by cluster; rows whose value is None are left out."""
    grouped: dict[str, list[Any]] = {}
    for row in rows:
        if (found := value(row)) is not None:
            grouped.setdefault(row["cluster"], []).append(found)
    return [np.array(found) for found in grouped.values()]


def _scores(rows: Rows, *names: str) -> list[np.ndarray]:
    """The scores of every cluster, (n,) of one detector or (n, detectors); images without a score are left out."""

    def value(row: dict[str, Any]) -> Any:
        scores = [row["scores"][name] for name in names]
        return None if None in scores else scores[0] if len(scores) == 1 else scores

    return clusters_of(rows, value)


def _figure(figure: str, positive: list[np.ndarray], negative: list[np.ndarray]) -> dict[str, float] | None:
    """A figure with its interval, None where there are too few images for it."""
    count = sum(map(len, negative))
    if not positive or not negative:
        return None
    if figure == "auc":
        return asdict(clustered(auc, positive, negative, draws=DRAWS))
    fpr, least = _LEAST[figure]
    if count < least:
        return None
    # redrawn clusters may hold fewer negatives; such samples have no figure, and are left out of the interval
    found = clustered(lambda one, other: tpr_at_fpr(one, other, fpr), positive, negative, draws=DRAWS)
    return asdict(covering_exact(found, len(positive)))


def _flagged(rows: Rows, name: str) -> dict[str, float] | None:
    """The share of images that are flagged at `FPR`, with its interval."""

    def value(row: dict[str, Any]) -> float | None:
        p_value = row["p_values"][name]
        return None if p_value is None else float(p_value <= FPR)

    grouped = clusters_of(rows, value)
    return asdict(rate(grouped)) if grouped else None


def _differences(parts: dict[str, Rows], negatives: dict[str, Rows], every: dict[str, Any]) -> dict[str, Any]:
    """By part: the detector with the largest AUC, and the AUC of every other minus its own."""
    group = main_group(negatives)
    found: dict[str, Any] = {}
    for part, positive in parts.items():
        values = {name: figures["auc"][part][group] for name, figures in every.items()}
        known = {name: value["value"] for name, value in values.items() if value is not None}
        if len(known) < 2:
            continue
        best = max(known, key=lambda name: known[name])
        below = {}
        for name in known:
            if name != best:
                pairs = _scores(positive, name, best), _scores(negatives[group], name, best)
                if all(pairs):
                    below[name] = asdict(clustered(_less, *pairs, draws=DRAWS))
        found[part] = {"best": best, "against": group, "below": below}
    return found


def _less(positive: np.ndarray, negative: np.ndarray) -> float:
    """The AUC of the first detector less that of the second."""
    return auc(positive[:, 0], negative[:, 0]) - auc(positive[:, 1], negative[:, 1])
