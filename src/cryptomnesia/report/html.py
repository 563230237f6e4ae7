"""The audit as one HTML file: it asks for no network and no server, and holds nothing that a prompt could make run."""

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from cryptomnesia.auditing.as_json import finite
from cryptomnesia.auditing.evidence import Level, gate
from cryptomnesia.auditing.outcome import Judged, Outcome
from cryptomnesia.auditing.rows import RETURNED
from cryptomnesia.auditing.safeguard import level_behind
from cryptomnesia.auditing.scoring import calibration_in, installed
from cryptomnesia.auditing.store import Store
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.decoding import opened, shown_as
from cryptomnesia.detectors import Detector
from cryptomnesia.matching.sources import content_of
from cryptomnesia.report.meanings import meanings, notes
from cryptomnesia.report.safeguard import HEADINGS, sentences, table
from cryptomnesia.statistics import conformal_threshold
from cryptomnesia.tracing.columns import trajectory_of
from cryptomnesia.words import spans

SIDE = 256
"""Pixels of an embedded picture at most, about as large as it is shown; the run holds it as it is."""

_REASONS = {
    "matched_whole": "the picture is nearer to a training image than pictures like it are",
    "matched_region": "its memorized region is nearer to one of a training image than pictures like it are there",
    "region": "its map is higher than those of ordinary pictures",
    "repeated": "another seed gives the same pixels",
}

Shown = Callable[[Path, str], str | None]
"""Returns a picture of a folder as a data URI, None if it is left out or cannot be read."""


@dataclass(frozen=True)
class _References:
    """What the scores of a run are compared with.

    Attributes:
        calibration: of the run.
        detector: that computes scores of ordinary images; None where this installation cannot make the same one.
    """

    calibration: Calibration
    detector: Detector | None

    @property
    def null(self) -> list[float | None]:
        """The scores of ordinary images."""
        return [] if self.detector is None else _numbers(self.calibration.null(self.detector)[:, -1].tolist())

    def thresholds(self, fpr: float) -> list[float | None]:
        """The smallest score that is suspected, after every evaluation; None where no score is."""
        if self.detector is None:
            return []
        null = self.calibration.null(self.detector)
        # a false-discovery rate may ask for a smaller p-value than there is
        if fpr < 1 / (len(null) + 1):
            return [None] * null.shape[1]
        return [_number(conformal_threshold(column, fpr)) for column in null.unbind(dim=1)]

    def running(self, rows: list[dict[str, Any]]) -> list[list[float | None]]:
        """The score after every evaluation, for the image of every row."""
        if self.detector is None:
            return [[] for _ in rows]
        running = self.detector.running(trajectory_of(rows), self.calibration.references)
        return [_numbers(scores) for scores in running.tolist()]


def html(found: Outcome, store: Store, *, embed_images: bool = False, training: Path | None = None) -> str:
    """The report.

    Args:
        found: the outcome of the run.
        store: the run.
        embed_images: whether to put pictures into it. They may be what was memorized: without them the report can be
            shown to anyone.
        training: the folder of the training images, or their shard, whose nearest ones are then put in as well.
    """
    static = files("cryptomnesia.report") / "static"
    style, script = (static.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        static.joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    settings, gate = found.settings, found.gate
    detector, why_not = installed(found.detector, found.made_by)
    references = _References(calibration_in(store), detector)
    shown = _picture if embed_images else _left_out
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        evidence = list(
            pool.map(lambda judged: _inert(_evidence(judged, found, references, store, training, shown)), found.prompts)
        )
    return template.render(
        model=found.about["model"],
        prompts=len(found.prompts),
        images=sum(len(judged.images) for judged in found.prompts),
        detector=found.detector,
        fpr=f"{found.fpr:g}",
        version=found.about["versions"]["cryptomnesia"],
        gate=gate,
        share=f"{gate.share.value:.1%}",
        low=f"{gate.share.low:.1%}",
        high=f"{gate.share.high:.1%}",
        limit=f"{gate.limit:.1%}",
        fail_on=settings.fail_on,
        levels=_levels(found),
        headings=HEADINGS,
        safeguard=table(found),
        sentences=sentences(found),
        notes=notes(found),
        embedded=embed_images,
        about=_about(found),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=_inert(_data(found, references, why_not)),
        evidence=evidence,
    )


def _levels(found: Outcome) -> Iterator[dict[str, Any]]:
    """How many prompts reach every level, and what that means."""
    levels, unsure = zip(*((judged.level, judged.unsure) for judged in found.prompts), strict=True)
    for level, meaning in meanings(found).items():
        share = ""
        if level >= Level.suspected:
            reached = gate(levels, level, 0, unsure=unsure).share
            share = f"{reached.value:.1%} ({reached.low:.1%} to {reached.high:.1%})"
        yield {"name": level.name, "count": found.counts[level.name], "share": share, "meaning": meaning}


def _data(found: Outcome, references: _References, why_not: str) -> dict[str, Any]:
    """What the page's script lists and draws at once, as JSON values."""
    return {
        "detector": found.detector,
        "fpr": found.fpr,
        "counts": found.counts,
        "null": references.null,
        "threshold": references.thresholds(found.fpr),
        "without": f"No charts: {why_not}." if why_not else "",
        "prompts": [
            {
                "prompt": judged.prompt,
                "level": judged.level.name,
                "p": _number(judged.p_value),
                "fraction": max(
                    (row["fraction"] for row in judged.images if row["fraction"] is not None), default=None
                ),
                "scores": [_number(row["score"]) for row in judged.images],
            }
            for judged in found.prompts
        ],
    }


def _evidence(
    judged: Judged,
    found: Outcome,
    references: _References,
    store: Store,
    training: Path | None,
    shown: Shown,
) -> list[dict[str, Any]]:
    """What a prompt opens to, as JSON values, image by image."""
    return [
        {
            "seed": row["seed"],
            "level": row["level"],
            "running": running,
            "fraction": row["fraction"],
            "map": _map(row),
            "why": _why(row),
            "action": row["action"],
            "reason": row["reason"],
            "dropped": row["dropped"],
            "words": _words(judged.prompt, row.get("words")),
            "picture": _within(store.folder, row["image"], shown),
            "instead": _within(store.folder, row["instead"], shown),
            "nearest": _nearest(row, training, shown),
            **_behind(row, found, training, shown),
        }
        for row, running in zip(judged.images, references.running(judged.images), strict=True)
    ]


def _behind(row: dict[str, Any], found: Outcome, training: Path | None, shown: Shown) -> dict[str, Any]:
    """What a guard returned in place of an image; nothing without a guard."""
    if found.safeguard is None:
        return {}
    match = {name.removeprefix(RETURNED): value for name, value in row.items() if name.startswith(RETURNED)}
    remade = row["instead"] is not None
    return {
        "behind": level_behind(row, found.settings.fpr).name,
        "remade": remade,
        "returned": _nearest(match, training, shown) if remade else None,
    }


def _words(prompt: str, words: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The prompt in pieces, each with the figures of its word or none; None where words were not compared."""
    if not words:
        return None
    figures = {word["text"].casefold(): word for word in words}
    pieces: list[dict[str, Any]] = []
    end = 0
    for start, stop in [*spans(prompt), (len(prompt), len(prompt))]:
        found = figures.get(prompt[start:stop].casefold())
        shares = {} if found is None else {key: finite(found[key]) for key in ("left_out", "gradient")}
        pieces += [{"text": prompt[end:start]}, {"text": prompt[start:stop], **shares}]
        end = stop
    return [piece for piece in pieces if piece["text"]]


def _map(row: dict[str, Any]) -> dict[str, Any] | None:
    """The logarithm of the map in 256 steps, and the mask in bits."""
    if row["map"] is None:
        return None
    heat = np.log1p(np.array(row["map"]))
    steps = np.round(heat * (255 / max(heat.max(), 1e-12))).astype(np.uint8)
    return {
        "rows": heat.shape[0],
        "columns": heat.shape[1],
        "highest": _number(np.expm1(heat.max())),
        "heats": _base64(steps.tobytes()),
        "mask": _base64(np.packbits(np.array(row["mask"], dtype=bool)).tobytes()),
    }


def _nearest(row: dict[str, Any], training: Path | None, shown: Shown) -> dict[str, Any] | None:
    """The training image that the picture or its region matches, or is nearest to compared with what is usual."""
    places = [place for place in ("region", "whole") if row[f"{place}_path"] is not None]
    if not places:
        return None
    place = min(places, key=lambda name: (not row[f"matched_{name}"], row[f"{name}_relative"]))
    path = row[f"{place}_path"]
    return {
        "path": path,
        "place": place,
        "relative": _number(row[f"{place}_relative"]),
        "matched": row[f"matched_{place}"],
        "p": _number(row[f"{place}_p"]),
        "picture": _within(training, path, shown),
    }


def _within(folder: Path | None, path: str | None, shown: Shown) -> str | None:
    """A picture of the folder, or of a shard or table in it."""
    return None if folder is None or path is None else shown(folder, path)


def _why(row: dict[str, Any]) -> str:
    """Why an image has its level, in words."""
    if math.isnan(row["p_value"]):
        score = row["reason"]
    else:
        # the reason of the verdict also says what was done, which the page shows by itself
        score = f"{row['detector']} {row['score']:.3g} has p = {row['p_value']:.3g}"
    missing = [] if row["map_missing"] is None else [f"no map: {row['map_missing']}"]
    return "; ".join([score, *(reason for signal, reason in _REASONS.items() if row[signal]), *missing])


def _about(found: Outcome) -> dict[str, str]:
    """The run as names and values."""
    about = found.about
    settings = {name: str(value) for name, value in about["settings"].items() if value is not None}
    methods = {role: name or "none" for role, name in about["methods"].items()}
    call = {name: str(about["fingerprint"][name]) for name in ("pipeline", "scheduler", "steps", "dtype")}
    return {
        **settings,
        **call,
        **methods,
        "guidance": f"{about['fingerprint']['guidance']:g}",
        "weights": about["weights"],
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
    }


def _picture(folder: Path, path: str) -> str | None:
    """A picture as a data URI, without the other data of its file; None where it cannot be read.

    A run may come from elsewhere, and cannot choose a file outside of the folder.
    """
    content = content_of(folder, path)
    if content is None:
        return None
    try:
        with opened(content) as file:
            picture = shown_as(file)
    # Pillow's decoders raise whatever a broken file leads them to
    except Exception:
        return None
    kind = "png" if max(picture.size) <= SIDE else "jpeg"
    picture.thumbnail((SIDE, SIDE))
    made = io.BytesIO()
    # a new image has no metadata of the file
    Image.fromarray(np.asarray(picture)).save(made, kind, quality=85)
    return f"data:image/{kind};base64,{_base64(made.getvalue())}"


def _left_out(_folder: Path, _path: str) -> None:
    """Leave a picture out of the report."""


def _inert(data: Any) -> Markup:
    """JSON that cannot end the HTML element around it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _hash(text: str) -> str:
    return _base64(hashlib.sha256(text.encode()).digest())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _numbers(values: list[float]) -> list[float | None]:
    return [_number(value) for value in values]
