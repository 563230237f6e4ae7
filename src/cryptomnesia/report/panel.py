"""Panels: what was generated, where it is memorized and what there is instead, side by side in a PNG file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cryptomnesia.detection import Finding
from cryptomnesia.files import replacing
from cryptomnesia.images import pixels, upsampled
from cryptomnesia.localization import Located

SIDE = 256
"""Height and width of a picture in a panel, in pixels."""

Picture = tuple[str, np.ndarray]
"""A name and a picture (H, W, 3) or a mask (H, W), uint8."""

_BAR = 22


def overlay(image: Tensor, heat: Tensor) -> np.ndarray:
    """A heat map over a greyed image.

    The map is drawn through log1p and scaled to its own largest value. So colours compare places within one picture,
    and do not compare pictures with each other. Places where the map is NaN get the lowest colour.

    Args:
        image: (3, H, W) in [0, 1].
        heat: (h, w), ≥ 0.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[1:]
    scaled = upsampled(heat.nan_to_num()[None].log1p(), height, width)[0]
    scaled = (scaled / scaled.max().clamp_min(1e-12)).numpy()
    grey = pixels(image).mean(axis=2, keepdims=True) / 255
    colour = colormaps["inferno"](scaled)[..., :3]
    return ((0.35 * grey + 0.65 * colour) * 255).round().astype(np.uint8)


def panel(pictures: Sequence[Picture], title: str = "") -> Image.Image:
    """Pictures in a row, with their names above them."""
    font = ImageFont.load_default(13)
    top = _BAR * (1 + bool(title))
    sheet = Image.new("RGB", (len(pictures) * (SIDE + 4) - 4, top + SIDE), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((4, 3), _fitted(title, sheet.width - 8, font), fill="black", font=font)
    for column, (name, picture) in enumerate(pictures):
        left = column * (SIDE + 4)
        draw.text((left + 4, top - _BAR + 3), _fitted(name, SIDE - 8, font), fill="black", font=font)
        image = Image.fromarray(picture).convert("RGB")
        kind = Image.Resampling.NEAREST if max(image.size) < SIDE else Image.Resampling.LANCZOS
        sheet.paste(image.resize((SIDE, SIDE), kind), (left, top))
        # without a frame a white mask could not be seen on white
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=(160, 160, 160))
    return sheet


def write_panel(path: Path, finding: Finding, more: Sequence[Picture] = ()) -> None:
    """Write the panel of a finding as a PNG file: the image, its map, and the image under mitigation.

    Of the last two the panel has what the finding has.

    Args:
        path: the file, replaced as a whole.
        finding: what to draw.
        more: further pictures, to the right of the others.
    """
    verdict = finding.verdict
    pictures = [("generated", pixels(finding.image))]
    if finding.located is not None:
        pictures += [("memorized region", overlay(finding.image, heat)) for heat in finding.located.maps.values()]
    if finding.instead is not None:
        name = f"without {', '.join(verdict.dropped)}" if verdict.dropped else "under mitigation"
        pictures.append((name, pixels(finding.instead)))
    elif verdict.action == "withheld":
        pictures.append(("withheld", pixels(torch.zeros_like(finding.image))))
    _write(path, panel([*pictures, *more], f"{finding.prompt}  ·  p = {verdict.p_value:.3g}"))


def write_maps(path: Path, located: Located) -> None:
    """Write a picture and its maps as a PNG file, every map followed by its mask if it has one."""
    pictures = [("generated", pixels(located.image))]
    for name, heat in located.maps.items():
        pictures.append((name, overlay(located.image, heat)))
        if name in located.masks:
            mask = located.masks[name]
            share = f"{mask.fraction.item():.0%} memorized, p = {mask.p_value.item():.2g}"
            pictures.append((share, mask.pixels.numpy().astype(np.uint8) * 255))
    _write(path, panel(pictures, f"{located.prompt}  ·  seed {located.seed}"))


def _write(path: Path, sheet: Image.Image) -> None:
    with replacing(path) as unfinished:
        sheet.save(unfinished, format="PNG")


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut where it would be wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
