"""Panels: what was generated, where it is memorized, what there is instead, side by side as a PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cryptomnesia.detection import Finding
from cryptomnesia.localization import Located
from cryptomnesia.localizers import upsampled
from cryptomnesia.proving_ground.manifest import Manifest

SIDE = 256
_BAR = 22


def pixels(image: Tensor) -> np.ndarray:
    """A (3, H, W) image in [0, 1] as (H, W, 3) uint8."""
    return (image.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def overlay(image: Tensor, heat: Tensor) -> np.ndarray:
    """A heat map over a greyed image.

    The map is drawn through log1p and scaled to its own largest value, so colours compare places
    within one picture, not pictures with each other.

    Args:
        image: (3, H, W) in [0, 1].
        heat: (h, w), ≥ 0.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[1:]
    scaled = upsampled(heat[None].log1p(), height, width)[0]
    scaled = (scaled / scaled.max().clamp_min(1e-12)).numpy()
    grey = pixels(image).mean(axis=2, keepdims=True) / 255
    colour = colormaps["inferno"](scaled)[..., :3]
    return ((0.35 * grey + 0.65 * colour) * 255).round().astype(np.uint8)


def panel(pictures: Sequence[tuple[str, np.ndarray]], title: str = "") -> Image.Image:
    """Pictures (H, W, 3) or masks (H, W) uint8 in a row, each under its name."""
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
        # a white mask would not be seen on white
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=(160, 160, 160))
    return sheet


def write_panel(path: Path, finding: Finding, manifest: Manifest | None = None) -> None:
    """Write the panel of a finding as a PNG: image, map, image under mitigation, as far as there are any.

    Args:
        path: the file, replaced as a whole.
        finding: what to draw.
        manifest: of the bundled model, whose planted image and true mask join those of a planted caption.
    """
    pictures = [("generated", pixels(finding.image))]
    if finding.map is not None:
        pictures.append(("memorized region", overlay(finding.image, finding.map)))
    if finding.remedy is not None:
        without = f"without {', '.join(finding.remedy.dropped)}" if finding.remedy.dropped else "under mitigation"
        shown = torch.zeros_like(finding.image) if finding.instead is None else finding.instead
        pictures.append(("withheld" if finding.instead is None else without, pixels(shown)))
    entry = None if manifest is None else manifest.planted_for(finding.prompt)
    if manifest is not None and entry is not None:
        pictures.append(("planted image", manifest.image(entry)))
        pictures.append(("true region", manifest.mask(entry).astype(np.uint8) * 255))
    _write(path, panel(pictures, f"{finding.prompt}  ·  p = {finding.p_value:.3g}"))


def write_maps(path: Path, found: Located) -> None:
    """Write a picture and its maps as a PNG, each map followed by its mask where there is one."""
    pictures = [("generated", pixels(found.image))]
    for name, heat in found.maps.items():
        pictures.append((name, overlay(found.image, heat)))
        if name in found.masks:
            mask = found.masks[name]
            said = f"{mask.fraction.item():.0%} memorized, p = {mask.p_value.item():.2g}"
            pictures.append((said, mask.pixels.numpy().astype(np.uint8) * 255))
    _write(path, panel(pictures, f"{found.prompt}  ·  seed {found.seed}"))


def _write(path: Path, sheet: Image.Image) -> None:
    unfinished = path.with_suffix(".unfinished")
    sheet.save(unfinished, format="PNG")
    unfinished.replace(path)


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
