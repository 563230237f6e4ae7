"""The answers of `find` as HTML pages: an overview, and one page for every picture, without scripts or network."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from cryptomnesia.images import heat, png
from cryptomnesia.report.drawing import Axes
from cryptomnesia.report.pages import number, template

if TYPE_CHECKING:
    from cryptomnesia.finding.answers import Answer, Found, Restoration

OVERVIEW = "index.html"

_CONDITIONS = {
    "own": "under its caption",
    "none": "without a caption",
    "other": "under the caption of another picture",
    "base": "by the base model",
}

_HELD = {
    "caption": "Its error is low under its caption.",
    "model": "Its error is low without a caption, too: the unconditional branch alone knows it.",
    "training": "The model knows it better than the base model does.",
}


def pages(found: "Found") -> Iterator[tuple[str, str]]:
    """Yield names of files and their content: the overview, and the page of every picture."""
    from cryptomnesia.finding.answers import MEANINGS, page_names
    from cryptomnesia.finding.wording import sentences

    shared = {
        "found": found,
        "model": found.about["model"],
        "version": found.about["versions"]["cryptomnesia"],
        "meanings": MEANINGS,
    }
    page = template("found.html.j2", "page.css", "found.css")
    names = page_names(found.answers)
    yield OVERVIEW, page.render(**shared, answer=None, rows=list(zip(found.answers, names, strict=True)))
    for place, (answer, name) in enumerate(zip(found.answers, names, strict=True)):
        text = page.render(
            **shared,
            answer=answer,
            rows=[],
            conditions=_CONDITIONS,
            held=" ".join(_HELD[name] for name in answer.held_by.split(", ") if name),
            curve=Markup(curve(found, answer)),
            map=_uri(heat(answer.map)),
            scale_map=_uri(heat(answer.scale_map - answer.scale_map.min())) if answer.scale_map.size > 1 else "",
            mask=_uri(png(answer.mask.astype(np.uint8) * 255)),
            strips=strips(answer, found.thumbnails.get(place, {})),
            sentences=sentences(found, answer),
            swapped=swapped(answer, found.alpha),
        )
        yield name, text


def strips(answer: "Answer", thumbnails: Mapping[str, Sequence[bytes]]) -> dict[str, list[dict[str, Any]]]:
    """Words for a condition → what comes back under it, the picture itself first if pictures were kept."""
    every = {
        "own": answer.restorations,
        "none": answer.restorations_without,
        "other": answer.restorations_other,
    }
    shown = {name: strip(restorations, thumbnails.get(name, ())) for name, restorations in every.items()}
    found = {_CONDITIONS[name]: steps for name, steps in shown.items() if steps}
    if found and thumbnails:
        shown = {"title": "the picture", "picture": _uri(thumbnails["picture"][0]), "copies": None}
        next(iter(found.values())).insert(0, shown)
    return found


def swapped(answer: "Answer", alpha: float) -> str:
    """Whether the picture comes back without its caption, nearer than all but a share `alpha` of controls."""
    also = "also " if answer.restorations else ""
    found = {}
    for name, restorations in (("none", answer.restorations_without), ("other", answer.restorations_other)):
        back = [one.ratio for one in restorations if one.copies and one.controls <= alpha]
        if back:
            noise = "from pure noise" if math.isinf(max(back)) else f"from noise up to σ/α = {number(max(back), 2)}"
            found[name] = f"It {also}comes back {_CONDITIONS[name]}, {noise}."
    if "none" in found:
        found["branch"] = "So the unconditional branch alone holds it."
    return " ".join(found.values())


def strip(restorations: Sequence["Restoration"], thumbnails: Sequence[bytes]) -> list[dict[str, Any]]:
    """What comes back from every noise level, with a picture if pictures were kept."""
    steps = [
        {
            "title": "pure noise" if math.isinf(one.ratio) else f"noise {number(one.ratio, 2)}",
            "copies": one.copies,
            "seeds": one.seeds,
            "distance": number(one.distance, 2),
            "similarity": f"{one.similarity:+.2f}",
            "controls": f"{one.controls:.0%}",
            "picture": None,
        }
        for one in restorations
    ]
    if steps and thumbnails:
        for step, file in zip(steps, thumbnails, strict=True):
            step["picture"] = _uri(file)
    return steps


def curve(found: "Found", answer: "Answer") -> str:
    """The denoising error over the noise levels as SVG: the picture's lines over the bands of the controls."""
    every = [value for values in answer.curve.values() for value in values]
    every += [value for bands in found.controls_curve.values() for band in bands for value in band]
    low, high = (_log(bound(every, default=1.0)) for bound in (min, max))
    ratios = [math.log10(ratio) for ratio in found.ratios]
    axes = Axes(ratios[0], ratios[-1], low, high)
    parts = []
    for condition, bands in found.controls_curve.items():
        if condition not in answer.curve or condition in ("other", "base"):
            continue
        below, above = ([_log(band[place]) for band in bands] for place in (0, 2))
        parts.append(axes.band(condition, ratios, below, above))
    for condition, errors in answer.curve.items():
        parts.append(axes.line(condition, ratios, [_log(error) for error in errors]))
    across, up = (
        [(tick, f"{10**tick:g}") for tick in range(math.ceil(first), math.floor(last) + 1)]
        for first, last in ((ratios[0], ratios[-1]), (low, high))
    )
    return axes.svg([*parts, axes.labels(across, up)], "denoising error over noise", "noise, σ/α")


def _log(error: float) -> float:
    return math.log10(max(error, 1e-9))


def _uri(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
