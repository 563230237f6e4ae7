"""From maps and true masks to figures. Needs no model: whoever has the maps can compute them again.

The truth of a reproduced picture is the mask of what was planted. Of a picture of which nothing was planted, it is an
empty mask. Two protocols are reported. `honest`: one threshold for all pictures, which a share `RATE` of the pixels of
reference pictures exceeds; it was fixed before any picture was judged. `oracle`, as in arXiv:2605.26756: log(1 + map),
scaled to [0, 1] over the whole set, and of 101 thresholds the best one for each figure, which nobody knows beforehand.
Intervals redraw whole concepts or captions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.bench.figures import DRAWS, Rows, clusters_of, main_part, parts_of
from cryptomnesia.bench.trials import MEMORIZED
from cryptomnesia.images import upsampled
from cryptomnesia.statistics import auc, clustered, tpr_at_fpr

REFERENCE = "reference"
"""The group of the pictures that fix thresholds."""

RATE = 0.05
"""Share of the pixels of reference pictures above the honest threshold."""

LEVELS = 101
"""Thresholds of the oracle protocol."""

Arrays = dict[str, np.ndarray]


def map_figures(rows: Rows, masks: np.ndarray, maps: Arrays) -> dict[str, Any]:
    """The figures of every localizer.

    Args:
        rows: of a packet, one per picture.
        masks: where the pictures are memorized, (n, H, W) bool.
        maps: name of a localizer → (n, h, w), ≥ 0; NaN for a picture without a map, which is left out.

    Returns:
        `counts`: pictures and clusters by part of the positives and by group. `everything`: IoU by part if all pixels
        are marked. `localizers`: name → `threshold`; `iou`, over all pixels of a part, and `mean_iou`, the mean over
        pictures, with 95% intervals; `oracle_iou`, `oracle_mean_iou` and `oracle_accuracy` by part, and in
        `with_ordinary` for the reproduced pictures together with the ordinary ones; `marked`, the share of pixels
        above the threshold by group, and in the `free` part of reproduced pictures; `auc` and `tpr_at_1pct`, the mean
        of the map as a score against every group. `difference`: by part the localizer with the largest IoU, and the IoU
        of every other minus its own, on the same redrawn pictures.
    """
    numbered = [{**row, "number": number} for number, row in enumerate(rows)]
    parts = {name: part for name, part in parts_of(numbered).items() if name != "not_reproduced"}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in numbered:
        if row["group"] not in (MEMORIZED, REFERENCE):
            groups.setdefault(row["group"], []).append(row)
    references = [row["number"] for row in numbered if row["group"] == REFERENCE]
    counts = {
        name: {"images": len(found), "clusters": len({row["cluster"] for row in found})}
        for name, found in {**parts, **groups, REFERENCE: [numbered[number] for number in references]}.items()
    }
    everything = {
        name: _whole(np.array([[masks[number].sum(), masks[number].size] for number in _numbers(part)]))
        for name, part in parts.items()
    }
    main = main_part(parts)
    found: dict[str, Any] = {}
    overlaps: dict[str, np.ndarray] = {}
    for name, values in maps.items():
        measured = _Measured.of(torch.from_numpy(values).float(), masks, references)
        known = measured.known
        overlaps[name] = measured.overlap
        reproduced = [row for row in parts.get(main or "", []) if known[row["number"]]]
        partly = [row for row in reproduced if not masks[row["number"]].all()]
        against = {group: [row for row in picked if known[row["number"]]] for group, picked in groups.items()}
        oracle = {part: measured.oracle(_numbers(picked, known)) for part, picked in parts.items()}
        if main is not None and "ordinary" in groups:
            oracle["with_ordinary"] = measured.oracle(_numbers([*parts[main], *groups["ordinary"]], known))
        found[name] = {
            "threshold": measured.threshold,
            "iou": {part: _figure(_whole, picked, measured.overlap) for part, picked in parts.items()},
            "mean_iou": {part: _figure(_each, picked, measured.overlap) for part, picked in parts.items()},
            **{
                f"oracle_{figure}": {part: best[figure] for part, best in oracle.items()}
                for figure in ("iou", "mean_iou", "accuracy")
            },
            "marked": {
                **{group: _figure(_whole, picked, measured.free) for group, picked in against.items()},
                "free": _figure(_whole, partly, measured.free),
            },
            "auc": {group: _scored(auc, reproduced, picked, measured.means) for group, picked in against.items()},
            "tpr_at_1pct": {
                group: _scored(tpr_at_fpr, reproduced, picked, measured.means) for group, picked in against.items()
            },
            "unknown": int((~known).sum()),
        }
    return {
        "counts": counts,
        "everything": everything,
        "localizers": found,
        "difference": _differences(parts, overlaps, found),
    }


def _numbers(rows: Rows, known: np.ndarray | None = None) -> list[int]:
    return [row["number"] for row in rows if known is None or known[row["number"]]]


@dataclass(frozen=True)
class _Measured:
    """What is needed of the maps of one localizer, so that maps at picture resolution need not all be held at once.

    Attributes:
        known: pictures that have a map, (n,) bool.
        threshold: the value that at most a share `RATE` of the reference pixels exceeds; NaN without any.
        overlap: pixels that are above it and memorized, and pixels that are either, (n, 2); NaN where not known.
        free: pixels that are above it and not memorized, and pixels that are not memorized, (n, 2).
        means: mean of every map, (n,).
        maps: at their own resolution, (n, h, w).
        masks: (n, H, W) bool.
    """

    known: np.ndarray
    threshold: float
    overlap: np.ndarray
    free: np.ndarray
    means: np.ndarray
    maps: Tensor
    masks: np.ndarray

    @classmethod
    def of(cls, maps: Tensor, masks: np.ndarray, references: Sequence[int]) -> "_Measured":
        """Compare maps with masks at the resolution of the masks."""
        known = maps.flatten(1).isfinite().all(dim=1).numpy()
        counting = [number for number in references if known[number]]
        pixels = [_at_masks(maps[[number]], masks) for number in counting]
        threshold = _exceeded(np.concatenate(pixels)) if pixels else float("nan")
        overlap, free, means = [], [], []
        for number, mask in enumerate(masks):
            values = _at_masks(maps[[number]], masks)[0]
            above = values > threshold
            overlap.append([(above & mask).sum(), (above | mask).sum()])
            free.append([(above & ~mask).sum(), (~mask).sum()])
            means.append(values.mean(dtype=np.float64))
        numbers = np.array(overlap, dtype=float), np.array(free, dtype=float)
        for counts in numbers:
            counts[~known if pixels else np.ones_like(known)] = np.nan
        return cls(known, threshold, *numbers, np.array(means), maps, masks)

    def oracle(self, numbers: Sequence[int]) -> dict[str, float | None]:
        """The best figures that any of `LEVELS` thresholds gives for some pictures together."""
        if not numbers:
            return dict.fromkeys(("iou", "mean_iou", "accuracy"))
        ends = [[f(_at_masks(self.maps[[n]], self.masks)) for n in numbers] for f in (np.min, np.max)]
        low, high = np.log1p(np.float64(min(ends[0]))), np.log1p(np.float64(max(ends[1])))
        hits, false = [], []
        for number in numbers:
            truth = self.masks[number]
            values = np.log1p(_at_masks(self.maps[[number]], self.masks)[0].astype(np.float64))
            # the highest threshold that a pixel reaches
            places = np.floor((values - low) / (high - low or 1.0) * (LEVELS - 1)).astype(np.int64)
            for inside, kept in ((truth, hits), (~truth, false)):
                kept.append(np.bincount(places[inside], minlength=LEVELS)[::-1].cumsum()[::-1])
        # (pictures, thresholds): pixels that reach each threshold
        right, wrong = np.stack(hits), np.stack(false)
        size = self.masks[numbers].sum(axis=(1, 2))[:, None]
        area = self.masks[0].size
        either = size + wrong
        by_picture = np.where(either > 0, right / np.maximum(either, 1), 1.0)
        return {
            "iou": float((right.sum(axis=0) / np.maximum(either.sum(axis=0), 1)).max()),
            "mean_iou": float(by_picture.mean(axis=0).max()),
            "accuracy": float(((right + area - size - wrong).sum(axis=0) / (area * len(numbers))).max()),
        }


def _at_masks(maps: Tensor, masks: np.ndarray) -> np.ndarray:
    """Maps at the resolution of the masks."""
    return upsampled(maps, *masks.shape[1:]).numpy()


def _exceeded(pixels: np.ndarray) -> float:
    """The value that at most a share `RATE` of the pixels exceeds."""
    count = pixels.size - 1 - int(RATE * pixels.size)
    return float(np.partition(pixels, count, axis=None)[count])


def _whole(overlap: np.ndarray) -> float:
    """Intersection over union of all pixels of pictures, of which (n, 2) has both; 1 if there is nothing to find."""
    inside, either = overlap.sum(axis=0)
    return float(inside / either) if either else 1.0


def _each(overlap: np.ndarray) -> float:
    """The mean over pictures; an empty union counts 1."""
    inside, either = overlap.T
    return float(np.where(either > 0, inside / np.maximum(either, 1), 1.0).mean())


def _figure(statistic: Any, rows: Rows, values: np.ndarray) -> dict[str, float] | None:
    """A figure of pictures with its interval, None without pictures."""
    known = [row for row in rows if not np.isnan(values[row["number"]]).any()]
    grouped = clusters_of(known, lambda row: values[row["number"]])
    return asdict(clustered(statistic, grouped, draws=DRAWS)) if grouped else None


def _scored(statistic: Any, positive: Rows, negative: Rows, means: np.ndarray) -> dict[str, float] | None:
    """A figure of the means of maps with its interval, None without pictures on both sides, or with too few."""
    if statistic is tpr_at_fpr and len(negative) < 100:
        return None
    grouped = [clusters_of(rows, lambda row: means[row["number"]]) for rows in (positive, negative)]
    return asdict(clustered(statistic, *grouped, draws=DRAWS)) if all(grouped) else None


def _differences(parts: dict[str, Rows], overlaps: Arrays, found: dict[str, Any]) -> dict[str, Any]:
    """By part: the localizer with the largest IoU, and the IoU of every other minus its own."""
    differences: dict[str, Any] = {}
    for part, rows in parts.items():
        values = {name: figures["iou"][part]["value"] for name, figures in found.items() if figures["iou"][part]}
        if len(values) < 2:
            continue
        best = max(values, key=lambda name: values[name])
        below = {
            name: _figure(
                lambda both: _whole(both[:, :2]) - _whole(both[:, 2:]),
                rows,
                np.concatenate([overlaps[name], overlaps[best]], axis=1),
            )
            for name in values
            if name != best
        }
        differences[part] = {"best": best, "below": below}
    return differences
