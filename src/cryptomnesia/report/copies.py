"""What a course says, in words and tables: the same on the page and in a terminal.

Importing this module loads nothing heavy.
"""

from collections.abc import Callable, Sequence
from math import isnan
from typing import TYPE_CHECKING

from cryptomnesia.report.pages import number

if TYPE_CHECKING:
    from cryptomnesia.finetuning.course import Course, Point

REPEATED = "These pictures are in your folder more than once; repeated pictures are memorized first:"

Column = tuple[str, Callable[["Point"], str]]
"""Heading of a column, and what it holds of a checkpoint."""


def verdict(course: "Course") -> str:
    """From which step on the training copies, in a sentence, and which checkpoint to keep."""
    if not course.points:
        return "Nothing was measured."
    base, last = course.points[0], course.points[-1]
    asked, start, before = len(course.pictures), course.start, course.before
    if last is base:
        return "No checkpoint was measured, only the base model."
    if start is None:
        return f"No checkpoint up to step {last.step:,} copies a picture: 0 of {asked} ({interval(last)})."
    count = len(start.copied)
    come = "comes" if count == 1 else "come"
    found = f"Copying starts at step {start.step:,}: {count} of {asked} pictures {come} back"
    if before is None or before is base:
        keep = "no earlier checkpoint was measured, so there is none to keep."
    else:
        keep = f"at step {before.step:,} none does. Keep the checkpoint {before.name}."
    return f"{found} ({interval(start)}); {keep}"


def interval(point: "Point") -> str:
    """The exact interval of the share of pictures that a checkpoint copies, in words."""
    return f"95% interval {percent(point.share.low)} to {percent(point.share.high)}"


def what_helps(course: "Course") -> list[str]:
    """What was measured to help against copying, in sentences; none if no checkpoint copies."""
    if course.start is None:
        return []
    helps, before, scale = [], course.before, course.highest_scale
    if before is not None and before is not course.points[0]:
        helps.append(f"Fewer steps: {before.name} (step {before.step:,}) copies no picture.")
    if scale is not None and 0 < scale.scale < 1:
        helps.append(f"A lower LoRA scale: at {number(scale.scale)}, {scale.name} copies no picture.")
    elif tried := [point.scale for point in course.scales if point.scale > 0]:
        lowest = f"the last checkpoint still copies at {number(tried[0])}, the lowest that was tried"
        helps.append(f"A lower LoRA scale does not help: {lowest}.")
    return helps


def copied_pictures(course: "Course") -> list[tuple[int, "Point"]]:
    """The number of every picture that comes back, with the first checkpoint that copies it.

    The earliest are first, of these the most alike.
    """
    first: dict[int, Point] = {}
    for point in course.points:
        for copied in point.copied:
            first.setdefault(copied, point)
    return sorted(first.items(), key=lambda item: (item[1].step, -item[1].seen[item[0]].score))


def table(course: "Course", points: Sequence["Point"], first: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one per point; columns that nothing was measured for are left out.

    Args:
        course: the course.
        points: of it, its checkpoints or its scales.
        first: columns to begin with, see `STEPS` and `SCALES`.
    """
    asked = len(course.pictures)
    columns: list[Column] = [
        *first,
        ("copied", lambda point: f"{len(point.copied)} of {asked}"),
        ("95% interval", lambda point: f"{percent(point.share.low)} to {percent(point.share.high)}"),
    ]
    if held_measured(points):
        columns.append(("held", lambda point: f"{len(point.held(course.alpha))} of {asked}" if held(point) else "–"))
    if any(point.others for point in points):
        columns.append(
            ("elsewhere", lambda point: f"{point.elsewhere} of {point.others} images" if point.others else "–")
        )
    if not all(isnan(point.flagged) for point in points):
        columns.append(("flagged", lambda point: percent(point.flagged)))
    if not all(isnan(point.diversity) for point in points):
        columns.append(("diversity", lambda point: percent(point.diversity)))
    return [heading for heading, _ in columns], [[write(point) for _, write in columns] for point in points]


STEPS: Sequence[Column] = (("step", lambda point: f"{point.step:,}"), ("checkpoint", lambda point: point.name))
SCALES: Sequence[Column] = (("LoRA scale", lambda point: number(point.scale)),)


def meanings(course: "Course") -> dict[str, str]:
    """Heading of a column of `table` → what it means."""
    rate = percent(course.alpha)
    return {
        "copied": "pictures of which most images under their caption are copies",
        "held": f"pictures that are restored from noise better than held-out pictures: {rate} of them by chance",
        "elsewhere": "images under held-out captions that are copies of a training picture as a whole",
        "flagged": f"training captions that the detector flags: {rate} of them by chance",
        "diversity": "how far images of one caption lie apart, relative to those of the base model",
    }


def held(point: "Point") -> bool:
    """Whether the pictures were compared with held-out ones at this checkpoint."""
    return not all(isnan(seen.p_value) for seen in point.seen)


def held_measured(points: Sequence["Point"]) -> bool:
    """Whether the pictures were compared with held-out ones at any checkpoint."""
    return any(map(held, points))


def percent(share: float) -> str:
    """A share with two digits, a dash for NaN."""
    return "–" if isnan(share) else f"{number(100 * share, 2)}%"
