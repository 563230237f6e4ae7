"""The answers of `find` as HTML pages: an overview, and one page for every picture, without scripts or network."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

if TYPE_CHECKING:
    from cryptomnesia.finding.answers import Answer, Found

OVERVIEW = "index.html"

_WIDTH, _HEIGHT, _MARGIN = 460, 220, 44

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


def pages(found: "Found") -> dict[str, str]:
    """Name of a file → its content: the overview, and the page of every picture."""
    from cryptomnesia.finding.answers import MEANINGS, page_names

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    static = files("cryptomnesia.report") / "static"
    style = static.joinpath("page.css").read_text(encoding="utf-8") + static.joinpath("found.css").read_text(
        encoding="utf-8"
    )
    shared = {
        "style": Markup(style),
        "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "found": found,
        "model": found.about["model"],
        "version": found.about["versions"]["cryptomnesia"],
        "meanings": MEANINGS,
        "number": number,
    }
    template = environment.from_string(static.joinpath("found.html.j2").read_text(encoding="utf-8"))
    names = page_names(found.answers)
    made = {OVERVIEW: template.render(**shared, answer=None, rows=list(zip(found.answers, names, strict=True)))}
    for place, (answer, name) in enumerate(zip(found.answers, names, strict=True)):
        made[name] = template.render(
            **shared,
            answer=answer,
            rows=[],
            conditions=_CONDITIONS,
            held=" ".join(_HELD[name] for name in answer.held_by.split(", ") if name),
            curve=Markup(curve(found, answer)),
            map=_uri(_heat(answer.map)),
            mask=_uri(_png(answer.mask.astype(np.uint8) * 255)),
            strip=strip(answer, found.thumbnails.get(place)),
        )
    return made


def number(value: float, digits: int = 3) -> str:
    """A number with some digits, a dash for none, ∞ for pure noise."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    # rounded first, because `g` alone writes 104 with two digits as 1e+02
    return f"{float(f'{value:.{digits}g}'):g}"


def strip(answer: "Answer", thumbnails: Sequence[bytes] | None) -> list[dict[str, Any]]:
    """What comes back from every noise level, with a picture if pictures were kept; the picture itself first."""
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
        for one in answer.restorations
    ]
    if not thumbnails:
        return steps
    for step, png in zip(steps, thumbnails[1:], strict=True):
        step["picture"] = _uri(png)
    return [{"title": "the picture", "picture": _uri(thumbnails[0]), "copies": None}, *steps]


def curve(found: "Found", answer: "Answer") -> str:
    """The denoising error over the noise levels as SVG: the picture's lines over the bands of the controls."""
    every = [value for values in answer.curve.values() for value in values]
    every += [value for bands in found.controls_curve.values() for band in bands for value in band]
    low, high = (math.log10(max(bound(every, default=1.0), 1e-9)) for bound in (min, max))
    ratios = [math.log10(ratio) for ratio in found.ratios]

    def place(ratio: float, error: float) -> str:
        x = _MARGIN + (ratio - ratios[0]) / max(ratios[-1] - ratios[0], 1e-9) * (_WIDTH - _MARGIN - 8)
        y = 8 + (high - math.log10(max(error, 1e-9))) / max(high - low, 1e-9) * (_HEIGHT - _MARGIN - 8)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for condition, bands in found.controls_curve.items():
        if condition not in answer.curve or condition in ("other", "base"):
            continue
        below = [place(ratio, band[0]) for ratio, band in zip(ratios, bands, strict=True)]
        above = [place(ratio, band[2]) for ratio, band in zip(ratios, bands, strict=True)]
        parts.append(f'<polygon class="band {condition}" points="{" ".join([*above, *below[::-1]])}"/>')
    for condition, errors in answer.curve.items():
        points = " ".join(place(ratio, error) for ratio, error in zip(ratios, errors, strict=True))
        parts.append(f'<polyline class="{condition}" points="{points}"/>')
    bottom = _HEIGHT - _MARGIN
    for tick in range(math.ceil(ratios[0]), math.floor(ratios[-1]) + 1):
        x = place(tick, 1).split(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{10**tick:g}</text>')
    for tick in range(math.ceil(low), math.floor(high) + 1):
        y = place(ratios[0], 10**tick).split(",")[1]
        parts.append(f'<text x="{_MARGIN - 6}" y="{y}" text-anchor="end">{10**tick:g}</text>')
        parts.append(f'<line class="grid" x1="{_MARGIN}" x2="{_WIDTH - 8}" y1="{y}" y2="{y}"/>')
    middle = (_MARGIN + _WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">noise, σ/α</text>')
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="denoising error over noise"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def _heat(values: np.ndarray) -> bytes:
    """A map as a picture; where nothing is held it is dark."""
    scaled = np.clip(values, 0, None) / max(values.max(), 1e-9)
    return _png((colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8))


def _png(picture: np.ndarray) -> bytes:
    made = io.BytesIO()
    Image.fromarray(picture).save(made, format="PNG")
    return made.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
