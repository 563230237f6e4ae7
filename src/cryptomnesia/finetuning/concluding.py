"""From what is kept of a checkpoint's images to what is said of the checkpoint."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.finetuning.asking import Group, Variant
from cryptomnesia.finetuning.course import Point, Seen
from cryptomnesia.statistics import conformal_p_values, needed_null


def point_of(
    variant: Variant,
    groups: Sequence[Group],
    found: Sequence[Mapping[str, Any]],
    spreads: Sequence[float | None],
    *,
    alpha: float,
    seed: int,
) -> Point:
    """What was measured of a checkpoint.

    Args:
        variant: the checkpoint, and the scale of its LoRA.
        groups: the captions.
        found: what is kept of every group.
        spreads: how far the images of the base lie apart, for every group; None where there is one image.
        alpha: rate at which pictures are held and captions are flagged.
        seed: of the first image of every caption.
    """
    pictures = [picture for group in found for picture in group["pictures"]]
    controls = [picture for picture in pictures if not picture["trained"]]
    # an image of a held-out picture is no copy, so nothing up to its score is one, as a whole or in a quarter
    least = np.max([[0.0, 0.0], *(score for picture in controls for score in picture["scores"])], axis=0)
    learnt = torch.tensor([picture["learnt"] for picture in controls], dtype=torch.float64)
    known = {picture["row"]: picture for picture in pictures if picture["trained"]}
    shared = {row: len(group.rows) for group in groups if group.trained for row in group.rows}
    seen = [_seen(known[row], least, learnt, shared[row], alpha, seed) for row in sorted(known)]
    ratios = [
        group["spread"] / before
        for group, before in zip(found, spreads, strict=True)
        if before is not None and before > 0 and group["spread"] is not None
    ]
    return Point(
        name=variant.checkpoint.name,
        step=variant.checkpoint.step,
        scale=variant.scale,
        digest=variant.checkpoint.digest,
        seen=seen,
        others=sum(len(group["elsewhere"]) for group in found),
        elsewhere=sum(int(score > least[0]) for group in found for score in group["elsewhere"]),
        diversity=float(np.mean(ratios)) if ratios else math.nan,
        flagged=flagged(groups, found, alpha),
    )


def _seen(found: Mapping[str, Any], least: np.ndarray, learnt: Tensor, shared: int, alpha: float, seed: int) -> Seen:
    """What was seen of a picture.

    Args:
        found: what is kept of it.
        least: the largest scores that no copy has, of the whole and of a quarter, (2,).
        learnt: by how much held-out pictures were learnt.
        shared: number of pictures with its caption.
        alpha: rate at which pictures are held.
        seed: of the first image.
    """
    scores = np.array(found["scores"]) - least
    copies, nearest = int((scores > 0).any(axis=1).sum()), nearest_of(scores)
    # of several pictures under one caption each comes back now and then
    needed = max(2, math.ceil(len(scores) / (2 * shared))) if shared > 1 else max(1, len(scores) / 2)
    p_value = math.nan
    if len(learnt) >= needed_null(alpha):
        p_value = float(conformal_p_values(torch.tensor([found["learnt"]], dtype=torch.float64), learnt)[0])
    whole = scores[nearest, 0] > 0 or scores[nearest, 0] >= scores[nearest, 1]
    kept = copies > 0 and found["seed"] == seed + nearest
    return Seen(
        images=len(scores),
        copies=copies,
        copied=bool(copies >= needed),
        score=float(scores[nearest, 0 if whole else 1]),
        by=found["by"][nearest] if whole else "both",
        part=(0.0, 0.0, 1.0, 1.0) if whole else tuple(found["quarters"][nearest]),
        learnt=found["learnt"],
        p_value=p_value,
        seed=seed + nearest,
        file=found["file"] if kept else "",
        maps=found["maps"] if kept else {},
    )


def flagged(groups: Sequence[Group], found: Sequence[Mapping[str, Any]], alpha: float) -> float:
    """The share of the training captions that the detector flags, NaN where it was not asked."""
    scores: dict[bool, list[float]] = {True: [], False: []}
    for one, group in zip(groups, found, strict=True):
        if group["score"] is not None:
            scores[one.trained].append(group["score"])
    if not scores[True] or not scores[False]:
        return math.nan
    mine, others = (torch.tensor(scores[trained], dtype=torch.float64) for trained in (True, False))
    return float((conformal_p_values(mine, others) <= alpha).double().mean())


def remaining(earlier: Sequence[Point], points: Sequence[Point]) -> tuple[list[Point], bool]:
    """Points of an earlier run in the same folder whose checkpoints the trainer has removed since.

    Returns:
        These points; none if a checkpoint has the name of an earlier one and other weights, because then the earlier
        ones are of another training. And whether that is so.
    """
    known = {(point.name, point.step): point.digest for point in points}
    another = any(known.get((point.name, point.step), point.digest) != point.digest for point in earlier)
    kept = [point for point in earlier if (point.name, point.step) not in known]
    return ([], bool(kept)) if another else (kept, False)


def nearest_of(scores: np.ndarray) -> int:
    """The number of the image that shows a copy best, by scores (n, 2): as a whole, if one is a copy as a whole."""
    return int(scores[:, 0].argmax() if (scores[:, 0] > 0).any() else scores.max(axis=1).argmax())
