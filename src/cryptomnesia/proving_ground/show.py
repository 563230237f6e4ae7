"""The picture grid of the docs: what was planted, where, and what the model makes of its caption."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cryptomnesia.proving_ground.concepts import PLANTED, WORDINGS
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.replication import planted_distance
from cryptomnesia.proving_ground.verify import Generations, Model, Progress, replication

_SIDE, _GAP, _LABEL, _TOP = 96, 4, 130, 20
_GENERATIONS = 4
_PICTURES = 400
_COLUMNS = ("training", "mask", *(f"generation {number + 1}" for number in range(_GENERATIONS)))


def grid(folder: Path, *, progress: Progress | None = None) -> Image.Image:
    """Rows of training image, mask and generations, for every kind and wording on the top rung, and for lower rungs.

    Of a model without captions, the nearest of its generations are shown. Generations that reproduce the planted pixels
    have a red frame.
    """
    model = Model.load(folder)
    chosen = _chosen(model.manifest)
    seeds = _GENERATIONS if model.ground.captioned else _PICTURES
    generated = [_nearest(model, made) for made in replication(model, chosen, seeds, progress or (lambda *_: None))]
    font = ImageFont.load_default(11)
    sheet = Image.new("RGB", (_LABEL + len(_COLUMNS) * (_SIDE + _GAP), _TOP + len(chosen) * (_SIDE + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(_COLUMNS):
        draw.text((_LABEL + column * (_SIDE + _GAP) + 3, 4), name, fill="black", font=font)
    for row, result in enumerate(generated):
        top = _TOP + row * (_SIDE + _GAP)
        times = {0: "never seen", 1: "seen once"}.get(result.entry.exposures, f"seen {result.entry.exposures} times")
        words = {"named": "invented name", "plain": "ordinary words", "mode": "other pictures, too"}
        text = f"{result.entry.kind}\n{words[result.entry.wording]}\n{times}"
        draw.text((3, top + 24), text, fill="black", font=font)
        for column, (picture, frame) in enumerate(_row(model.manifest, result)):
            left = _LABEL + column * (_SIDE + _GAP)
            sheet.paste(Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (left, top))
            if frame:
                colour, width = frame
                draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), outline=colour, width=width)
    return sheet


def _nearest(model: Model, made: Generations) -> Generations:
    """The generations that are nearest to the planted image, or all if they are few."""
    if len(made.images) <= _GENERATIONS:
        return made
    order = planted_distance(made.images, model.manifest.places(made.entry)).argsort()[:_GENERATIONS]
    return Generations(made.entry, made.images[order], made.replicated[order])


def _chosen(manifest: Manifest) -> Sequence[Entry]:
    """Of every kind: on the top rung one concept of each wording, or three of the only one; one of every other rung."""
    chosen = []
    for kind in PLANTED:
        of_kind = [entry for entry in manifest.entries if entry.kind == kind]
        top = [entry for entry in of_kind if entry.exposures == manifest.top]
        by_wording = [next((entry for entry in top if entry.wording == wording), None) for wording in WORDINGS]
        several = [entry for entry in by_wording if entry is not None]
        chosen += several if len(several) > 1 else top[:3]
        rungs = sorted({entry.exposures for entry in of_kind} - {manifest.top}, reverse=True)
        chosen += [next(entry for entry in of_kind if entry.exposures == rung) for rung in rungs]
    return chosen


def _row(manifest: Manifest, result: Generations) -> list[tuple[np.ndarray, tuple[str, int] | None]]:
    """Pictures (H, W, 3) uint8 of a row, each with the colour and width of its frame."""
    shown, mask = manifest.nearest_place(result.entry, result.images)
    # white on white would not be seen
    pictures = [(shown, None), (mask[..., None].repeat(3, axis=2).astype(np.uint8) * 255, ("#a0a0a0", 1))]
    generations = (result.images * 255).round().astype(np.uint8)
    red = ("#dc1e1e", 3)
    return pictures + [(made, red if hit else None) for made, hit in zip(generations, result.replicated, strict=True)]
