"""From the content of a picture file to eight bits a channel: every way in which a trainer may have read it.

A file can be read in more than one way, and most trainers leave the choice to their library:

- A camera writes a picture as its sensor lies and adds a rotation (EXIF). Viewers rotate, most training scripts do not.
- Transparent parts have colours that a viewer does not show. A script puts the picture on white, on black, or drops the
  transparency, which shows these colours.
- Sixteen bits a value may hold ten, twelve or fourteen, and a floating-point picture has no fixed range.

Each such way is a reading of the picture. A picture with neither rotation, transparency nor more than eight bits has
exactly one.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
"""Formats that are read. Pillow goes by the content of a file, and for other formats it may run other programs."""

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _SIGNS = 258, 262, 339
"""Tags of a TIFF file: bits of a value, and whether values have a sign (1: they have none)."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Value of the EXIF tag of the orientation → what turns the picture upright."""

_BACK = {
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}
"""What undoes a turn that does not undo itself."""

_DEPTHS = (8, 10, 12, 14, 16, 32)
"""Bits that a value of more than eight bits may really have."""

_ALIKE = 2
"""Largest difference, of 255, of two readings that count as one."""

_SEEN = 16
"""Levels, of 255, that a reading of a deep picture has to span; a reading with fewer shows next to nothing."""


@dataclass(frozen=True)
class Readings:
    """In which ways pictures are read.

    Attributes:
        exif: whether the rotation in EXIF is applied, ignored, or both are tried.
        alpha: whether transparent pictures are put on white, on black, lose their transparency, or all are tried.
    """

    exif: Literal["both", "apply", "ignore"] = "both"
    alpha: Literal["all", "white", "black", "drop"] = "all"


SHOWN = Readings("apply", "white")
"""The one way in which a viewer shows a picture."""


def opened(content: bytes) -> Image.Image:
    """Open the content of a file as a picture, which is not decoded yet.

    Raises:
        Exception: of any class if it is no picture of `FORMATS`; a broken file can make Pillow raise anything.
    """
    return Image.open(io.BytesIO(content), formats=FORMATS)


def squares(
    picture: Image.Image, side: int, wanted: Readings = SHOWN, content: bytes | None = None
) -> dict[str, np.ndarray]:
    """The middle square of a picture in every reading that differs from the others.

    Args:
        picture: it is decoded here, a large JPEG file at a smaller size.
        side: of the squares in pixels.
        wanted: the readings.
        content: of the file, which is decoded again if the picture has sixteen bits a channel.

    Returns:
        Name of the reading → (side, side, 3) uint8, as a viewer shows it first. A picture that has only one reading has
        the name "".
    """
    # Pillow turns a TIFF file upright when it decodes it, and forgets the rotation
    by_pillow = _turn(picture) if picture.format == "TIFF" else None
    # a large JPEG file need not be decoded at its full size
    picture.draft("RGB", (2 * side, 2 * side))
    deep = _deep(picture, content)
    if deep is None:
        flat = _on_grounds(picture, wanted.alpha)
    else:
        flat = _negative(picture, deep) | _depths(deep)
    small = {name: _small(image, side) for name, image in flat.items()}
    turn = _turn(picture) if by_pillow is None else by_pillow
    if turn is not None:
        small = _turned(small, turn, wanted.exif, by_pillow=by_pillow is not None)
    return _distinct({name: np.asarray(image) for name, image in small.items()})


def _turned(small: dict[str, Image.Image], turn: Image.Transpose, exif: str, by_pillow: bool) -> dict[str, Image.Image]:
    """The readings of a picture with a rotation in EXIF.

    Pillow turns a TIFF file in any case (`by_pillow`), so a script that ignores EXIF may have seen it in either way.
    """
    back = _BACK.get(turn, turn)
    upright, plain = {}, {}
    for name, image in small.items():
        upright[_joined(name, "rotated by EXIF")] = image if by_pillow else image.transpose(turn)
        plain[_joined(name, "not rotated")] = image.transpose(back) if by_pillow else image
    if exif == "apply":
        return upright
    return plain if exif == "ignore" and not by_pillow else upright | plain


def shown_as(picture: Image.Image) -> Image.Image:
    """A picture of any kind as RGB, as a viewer shows it."""
    deep = _deep(picture, None)
    found = _on_grounds(picture, "white") if deep is None else _negative(picture, deep) | _depths(deep)
    flat = next(iter(found.values()))
    turn = _turn(picture)
    return flat.convert("RGB") if turn is None else flat.convert("RGB").transpose(turn)


def _deep(picture: Image.Image, content: bytes | None) -> np.ndarray | None:
    """The values of a picture of more than eight bits, (H, W) or (H, W, 3); None for any other.

    Raises:
        ValueError: for a picture whose values Pillow misreads.
    """
    tags = getattr(picture, "tag_v2", {})
    tiles = getattr(picture, "tile", [])
    if len(tiles) > 1 and tags.get(_BITS, (8,))[0] > 8 and any(str(tile.args[0]) in "RGBA" for tile in tiles):
        raise ValueError("a TIFF file with more than eight bits in separate planes, which is not read")
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        # Pillow reads 32 bits without a sign as if they had one
        unsigned = values.dtype == np.int32 and tags.get(_SIGNS, (1,))[0] == 1 and values.min() < 0
        return values.view(np.uint32) if unsigned else values
    if content is None or picture.mode not in ("RGB", "RGBA") or not any(";16" in str(tile[3]) for tile in tiles):
        return None
    # Pillow keeps the high byte of colours. If it is small, the values may have fewer than sixteen bits
    high = np.asarray(picture)[..., :3]
    if high.max() >= 64:
        return None
    again: Any = opened(content)
    # the four bytes of grey and transparency are read as four channels, because Pillow gives their high bytes alone
    grey = any(str(tile.args) == "LA;16B" for tile in again.tile)
    again.tile = [tile._replace(args="RGBA" if grey else _other_byte(tile.args)) for tile in again.tile]
    try:
        low = np.asarray(again)[..., [1, 1, 1] if grey else [0, 1, 2]]
    # Pillow knows both bytes of most orders of channels, but not of all
    except (ValueError, OSError):
        return None
    return high.astype(np.uint16) * 256 + low


def _negative(picture: Image.Image, values: np.ndarray) -> dict[str, Image.Image]:
    """The reading of a TIFF file whose tag says that 0 is white, which Pillow heeds for eight bits alone."""
    if getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) != 0 or values.dtype.kind not in "iu":
        return {}
    bits = picture.tag_v2.get(_BITS, (16,))[0]  # pyright: ignore[reportAttributeAccessIssue]
    return {"0 is white": Image.fromarray(_scaled(values.astype(np.float64), 2.0**bits - 1, 0.0))}


def _other_byte(args: object) -> object:
    """Arguments of a decoder that give the other byte of sixteen bits."""
    if isinstance(args, tuple):
        return (_other_byte(args[0]), *args[1:])
    text = str(args)
    # `N` is the order of this machine; Pillow's wheels are for little-endian ones
    return text.replace(";16B", ";16L") if ";16B" in text else text.replace(";16L", ";16B").replace(";16N", ";16B")


def _depths(values: np.ndarray) -> dict[str, Image.Image]:
    """Readings of a picture of more than eight bits, by the range that its values may have.

    A picture of integers is tried at every usual depth that holds its largest value, and a picture of floating-point
    numbers in every usual range that holds nearly all of its values. Its own range, from the smallest to the largest
    value, comes last, so that a picture whose range is not usual is not black or white.
    """
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        raise ValueError("no value of the picture is finite")
    low, high = float(finite.min()), float(finite.max())
    if values.dtype.kind == "f":
        usual = {"0 to 1": (0.0, 1.0), "-1 to 1": (-1.0, 1.0), "0 to 255": (0.0, 255.0), "0 to 65535": (0.0, 65535.0)}
        ranges = {name: ends for name, ends in usual.items() if _holds(ends, finite)}
        if low >= 0:
            ranges.pop("-1 to 1", None)
    else:
        ranges = {f"{bits} bits": (0.0, 2.0**bits - 1) for bits in _DEPTHS if low >= 0 and high < 2**bits}
    scaled = {name: _scaled(numbers, *ends) for name, ends in (ranges | {"own range": (low, high)}).items()}
    spans = {name: int(image.max()) - int(image.min()) for name, image in scaled.items()}
    seen = [name for name, span in spans.items() if span >= _SEEN] or list(scaled)[:1]
    return {name: Image.fromarray(scaled[name]) for name in seen}


def _holds(ends: tuple[float, float], finite: np.ndarray) -> bool:
    """Whether 99% of values lie in a range, up to a hundredth of it."""
    slack = (ends[1] - ends[0]) / 100
    return bool(np.mean((finite >= ends[0] - slack) & (finite <= ends[1] + slack)) >= 0.99)


def _scaled(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers as uint8, `low` as 0 and `high` as 255; NaN as 0."""
    unit = (numbers - low) / (high - low or 1e-300)
    return (np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)


def _on_grounds(picture: Image.Image, alpha: str) -> dict[str, Image.Image]:
    """A picture of eight bits without transparency, as RGB."""
    if not picture.has_transparency_data:
        return {"": picture.convert("RGB")}
    clear = picture.convert("RGBA")
    if clear.getchannel("A").getextrema()[0] == 255:
        return {"": clear.convert("RGB")}
    grounds = ("white", "black", "drop") if alpha == "all" else (alpha,)
    found = {}
    for ground in grounds:
        if ground == "drop":
            found["alpha dropped"] = clear.convert("RGB")
        else:
            below = Image.new("RGBA", clear.size, ground)
            found[f"alpha on {ground}"] = Image.alpha_composite(below, clear).convert("RGB")
    return found


def _small(picture: Image.Image, side: int) -> Image.Image:
    """The middle square of a picture without transparency, scaled, as RGB."""
    picture = picture.convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    resample = Image.Resampling.BOX if short >= side else Image.Resampling.BILINEAR
    return picture.resize((side, side), resample, box=(left, top, left + short, top + short))


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What turns a picture upright, None if it is. A TIFF file that Pillow has decoded is upright."""
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    # a viewer shows a picture whose EXIF is broken as it is, and Pillow raises whatever the bytes lead it to
    except Exception:
        return None


def _joined(*names: str) -> str:
    return ", ".join(name for name in names if name)


def _distinct(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Readings that differ from all before them; one alone is called ""."""
    kept: dict[str, np.ndarray] = {}
    for name, one in found.items():
        if all(np.abs(one.astype(int) - other).max() > _ALIKE for other in kept.values()):
            kept[name] = one
    return kept if len(kept) > 1 else {"": next(iter(kept.values()))}
