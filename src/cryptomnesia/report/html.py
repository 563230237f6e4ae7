"""The audit as one HTML file: no network, no server, nothing in it that a prompt could make run."""

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cryptomnesia import __version__
from cryptomnesia.audit.examiner import trajectory_of
from cryptomnesia.audit.outcome import Outcome
from cryptomnesia.calibrate import Calibration
from cryptomnesia.detectors import DETECTORS
from cryptomnesia.store import Store

_REASONS = {
    "matched_whole": "the picture is nearer to a training image than pictures usually are",
    "matched_region": "its memorized region is nearer to one of a training image than pictures usually are",
    "region": "its map is higher than those of ordinary pictures",
    "repeated": "another seed gives the same pixels",
}


def html(found: Outcome, store: Store, *, embed_images: bool = False, training: Path | None = None) -> str:
    """The report.

    Args:
        found: the outcome of the run.
        store: the run.
        embed_images: whether to put pictures into it. They may be what was memorized: without them the report can be
            shown to anyone.
        training: the folder of the training images, whose nearest ones are then put in as well.
    """
    static = files("cryptomnesia.report") / "static"
    style, script = (static.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        static.joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    settings, gate = found.settings, found.gate
    return template.render(
        model=settings.model,
        prompts=len(found.prompts),
        images=sum(len(each.images) for each in found.prompts),
        detector=found.detector,
        rate=f"{found.rate:g}",
        version=__version__,
        gate=gate,
        share=f"{gate.share.value:.1%}",
        low=f"{gate.share.low:.1%}",
        high=f"{gate.share.high:.1%}",
        limit=f"{gate.limit:.1%}",
        fail_on=settings.fail_on,
        counts=found.counts,
        about=_about(found),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=_inert(_data(found, store, embed_images, training)),
    )


def _data(found: Outcome, store: Store, embed_images: bool, training: Path | None) -> dict[str, Any]:
    """What the page's script shows, as JSON values."""
    calibration = Calibration.load(store.folder / "calibration.safetensors")
    null = calibration.null[found.detector]
    detector = DETECTORS[found.detector](calibration.reference)

    def prompt(images: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        running = detector.running(trajectory_of(images))
        for row, scores in zip(images, running, strict=True):
            place = "region" if row["matched_region"] else "whole" if row["matched_whole"] else None
            yield {
                "seed": row["seed"],
                "level": row["level"],
                "score": _number(row["score"]),
                "running": [_number(value) for value in scores.tolist()],
                "fraction": row["fraction"],
                "map": None if row["map"] is None else [[float(f"{v:.3g}") for v in line] for line in row["map"]],
                "mask": None if row["mask"] is None else [[int(value) for value in line] for line in row["mask"]],
                "why": _why(row, found),
                "action": row["action"],
                "dropped": row["dropped"] or [],
                "picture": _picture(store.folder / row["image"]) if embed_images else None,
                "instead": _picture(store.folder / row["instead"]) if embed_images and row["instead"] else None,
                "nearest": None
                if place is None
                else {
                    "path": row[f"{place}_path"],
                    "relative": row[f"{place}_relative"],
                    "picture": _picture(training / row[f"{place}_path"]) if embed_images and training else None,
                },
            }

    return {
        "counts": found.counts,
        "null": [_number(value) for value in null[:, -1].tolist()],
        "threshold": [
            _number(calibration.threshold(found.detector, found.rate, index)) for index in range(null.shape[1])
        ],
        "prompts": [
            {
                "prompt": each.prompt,
                "level": each.level.name,
                "p": _number(each.p_value),
                "fraction": max((row["fraction"] for row in each.images if row["fraction"] is not None), default=None),
                "images": list(prompt(each.images)),
            }
            for each in found.prompts
        ],
    }


def _why(row: dict[str, Any], found: Outcome) -> str:
    if row["p_value"] != row["p_value"]:
        return "no score: the run broke off or its latents are not finite"
    said = [f"{found.detector} {row['score']:.3g} has p = {row['p_value']:.3g}"]
    return "; ".join(said + [reason for signal, reason in _REASONS.items() if row[signal]])


def _about(found: Outcome) -> dict[str, str]:
    about = found.about
    settings = {name: str(value) for name, value in about["settings"].items() if value is not None}
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return {**settings, "guidance": f"{about['guidance']:g}", "weights": about["weights"], "versions": versions}


def _picture(path: Path) -> str | None:
    """A file as a data URI, None where it is gone."""
    kinds = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif", ".bmp": "bmp"}
    kind = kinds.get(path.suffix.lower())
    if kind is None or not path.is_file():
        return None
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _inert(data: dict[str, Any]) -> Markup:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
