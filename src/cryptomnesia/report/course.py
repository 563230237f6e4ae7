"""The course of a training as an HTML page, without scripts or network.

Pictures are not put into the page: it shows the files of the run's folder that `Seen.file` and `Seen.maps` name,
relative to itself. Beside an image `NAME.png` lies the training picture in the same size, `NAME.training.png`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from cryptomnesia import __version__
from cryptomnesia.report.copies import (
    REPEATED,
    SCALES,
    STEPS,
    Column,
    copied_pictures,
    held,
    meanings,
    percent,
    table,
    verdict,
    what_helps,
)
from cryptomnesia.report.drawing import WIDTH, Axes, round_values
from cryptomnesia.report.pages import number, template

if TYPE_CHECKING:
    from cryptomnesia.finetuning.course import Course, Point, Seen


def page(course: "Course") -> str:
    """The page of a course as one HTML document, which shows files beside it."""
    harmless = not any(point.copied for point in course.scales)
    cards = [_card(course, picture, point) for picture, point in copied_pictures(course)]
    copied = {card["number"] for card in cards}
    return template("course.html.j2", "page.css", "found.css", "course.css").render(
        course=course,
        version=__version__,
        verdict=verdict(course),
        helps=what_helps(course),
        repeated=REPEATED,
        meanings=meanings(course),
        curves=[
            _curve(course, course.points, "step", course.start),
            _curve(course, course.scales, "scale", None if harmless else course.highest_scale),
        ],
        tables=[
            _table(course, "Checkpoints", course.points, STEPS),
            _table(course, "LoRA scales of the last checkpoint", course.scales, SCALES),
        ],
        cards=cards,
        never=[_never(course, picture) for picture in range(len(course.pictures)) if picture not in copied],
        about={name: _words(value) for name, value in course.about.items()},
    )


def _curve(course: "Course", points: Sequence["Point"], across: str, mark: "Point | None") -> dict[str, Any] | None:
    """What is measured over the steps or the LoRA scales as SVG, with the names of its lines; None for one point.

    Args:
        course: the course.
        points: of it, its checkpoints or its scales.
        across: the attribute that increases over the points, `step` or `scale`.
        mark: the point at which a line is drawn.
    """
    if len(points) < 2:
        return None
    values = {
        "copied": [point.share.value for point in points],
        "held": [
            len(point.held(course.alpha)) / max(1, len(point.seen)) if held(point) else math.nan for point in points
        ],
        "flagged": [point.flagged for point in points],
        "diversity": [point.diversity for point in points],
    }
    values = {name: shares for name, shares in values.items() if not all(map(math.isnan, shares))}
    xs = [getattr(point, across) for point in points]
    top = max([1.0, *(share for shares in values.values() for share in shares if not math.isnan(share))])
    axes = Axes(xs[0], xs[-1], 0.0, top, top=40, height=300)
    steps = across == "step"
    parts = [
        axes.labels(
            [(value, f"{value:,.0f}" if steps else number(value)) for value in round_values(xs[0], xs[-1])],
            [(value, percent(value)) for value in round_values(0.0, top)],
        ),
        f'<text x="0" y="12">share{", or diversity relative to the base model" * ("diversity" in values)}</text>',
        axes.band("copied", xs, *zip(*((point.share.low, point.share.high) for point in points), strict=True)),
    ]
    for name in reversed(values):
        parts += [axes.line(name, xs, values[name]), axes.dots(name, xs, values[name])]
    if mark is not None:
        x = axes.x(getattr(mark, across))
        says = f"copying starts: step {mark.step:,}" if steps else f"copying starts above {number(mark.scale)}"
        # the text stays within the drawing
        anchor = "start" if x < WIDTH / 3 else "end" if x > WIDTH * 2 / 3 else "middle"
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="34" y2="{axes.bottom}"/>')
        parts.append(f'<text class="mark" x="{x:.1f}" y="29" text-anchor="{anchor}">{says}</text>')
    name = "step of the training" if steps else "LoRA scale of the last checkpoint"
    label = f"{', '.join(values)} over the {name}; the table has the same numbers"
    return {
        "title": f"Over the {'steps' if steps else 'LoRA scale'}",
        "svg": Markup(axes.svg(parts, label, name)),
        "lines": list(values),
    }


def _table(course: "Course", title: str, points: Sequence["Point"], first: Sequence[Column]) -> dict[str, Any]:
    """The table of checkpoints or of scales."""
    headings, lines = table(course, points, first)
    return {
        "title": title,
        "headings": headings,
        "lines": [(bool(point.copied), line) for point, line in zip(points, lines, strict=True)],
    }


def _card(course: "Course", picture: int, point: "Point") -> dict[str, Any]:
    """A picture that comes back, as the first checkpoint that copies it makes it."""
    seen, last = point.seen[picture], course.points[-1]
    return {
        "number": picture,
        "name": course.pictures[picture],
        "digest": course.digests[picture],
        "point": point,
        "last": None if point is last else last.seen[picture],
        "seen": seen,
        "place": [percent(edge) for edge in seen.part],
        "figures": _figures(seen, course.pictures[picture], point),
        "learnt": number(seen.learnt, 2),
        "p_value": "" if math.isnan(seen.p_value) else number(seen.p_value, 2),
    }


def _figures(seen: "Seen", name: str, point: "Point") -> list[dict[str, Any]]:
    """Pictures of a card; none if the run keeps none."""
    frame = None
    if not seen.whole:
        top, left, bottom, right = seen.part
        frame = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    figures = []
    if seen.file:
        training = f"{seen.file.removesuffix('.png')}.training.png"
        figures += [
            {"src": _url(training), "alt": f"training picture {name}", "says": "training picture", "frame": frame},
            {
                "src": _url(seen.file),
                "alt": f"image of step {point.step:,} that is a copy of {name}",
                "says": f"image of step {point.step:,}",
                "frame": frame,
            },
        ]
    for what, file in seen.maps.items():
        says = f"where its {what} differs from the base model's"
        figures.append({"src": _url(file), "alt": f"map of {name}: {says}", "says": says, "frame": None})
    return figures


def _never(course: "Course", picture: int) -> str:
    """The name of a picture that is not copied; with the most images of it that a checkpoint copies, if there are."""
    most = max((point.seen[picture] for point in course.points), key=lambda seen: seen.copies, default=None)
    name = course.pictures[picture]
    return f"{name} (at most {most.copies} of {most.images} images)" if most is not None and most.copies else name


def _url(file: str) -> str:
    """A file of the folder of the page as a relative address, whatever its name is."""
    return f"./{quote(file)}"


def _words(value: Any) -> str:
    """A JSON value in one line; what lies deeper in it as JSON."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value))
    return value if isinstance(value, str) else json.dumps(value)
