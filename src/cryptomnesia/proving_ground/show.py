"""The picture grid of the docs: what was planted, where, and what the model makes of its caption."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.verify import Progress, replication

_SIDE, _GAP, _LABEL, _TOP = 96, 4, 118, 20
_GENERATIONS = 4


def grid(folder: Path, *, progress: Progress | None = None) -> Image.Image:
    """Rows of training image, mask and four generations, for the first concepts of both kinds on every rung."""
    manifest = Manifest.load(folder)
    pipe = load_pipeline(str(folder / "pipeline"), device="cpu")
    manifest.check(pipe)
    rungs = sorted({entry.exposures for entry in manifest.entries if entry.planted}, reverse=True)
    chosen = [
        entry
        for kind in ("verbatim", "template")
        for rung in rungs
        for entry in [e for e in manifest.entries if e.kind == kind and e.exposures == rung][
            : 3 if rung == rungs[0] else 1
        ]
    ]
    generated = replication(pipe, manifest, chosen, _GENERATIONS, progress or (lambda *_: None))
    font = ImageFont.load_default(11)
    columns = ["training", "mask", *(f"generation {number + 1}" for number in range(_GENERATIONS))]
    sheet = Image.new("RGB", (_LABEL + len(columns) * (_SIDE + _GAP), _TOP + len(chosen) * (_SIDE + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((_LABEL + column * (_SIDE + _GAP) + 3, 4), name, fill="black", font=font)
    for row, result in enumerate(generated):
        top = _TOP + row * (_SIDE + _GAP)
        times = "once" if result.entry.exposures == 1 else f"{result.entry.exposures} times"
        draw.text((3, top + 30), f"{result.entry.kind}\nseen {times}", fill="black", font=font)
        mask = manifest.mask(result.entry)[..., None].repeat(3, axis=2).astype(np.uint8) * 255
        pictures = [manifest.image(result.entry), mask, *(result.images * 255).round().astype(np.uint8)]
        for column, picture in enumerate(pictures):
            left = _LABEL + column * (_SIDE + _GAP)
            sheet.paste(Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (left, top))
            if column == 1:
                # white on white would not be seen
                draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), outline=(160, 160, 160))
            if column >= 2 and result.replicated[column - 2]:
                draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), outline=(220, 30, 30), width=3)
    return sheet
