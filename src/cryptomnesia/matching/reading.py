"""Read the pictures of a source: their squares in every reading, or why there are none."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from cryptomnesia.decoding import SHOWN, Readings, opened, squares
from cryptomnesia.images import unit
from cryptomnesia.matching.sources import Item


@dataclass(frozen=True)
class Picture:
    """A picture of a source: its digest, and its squares by reading, or why there are none."""

    digest: str
    squares: dict[str, np.ndarray]
    problem: str = ""


def read_square(path: Path, side: int) -> torch.Tensor | str:
    """The middle square of a picture file as a viewer shows it, (3, side, side) in [0, 1], or why it cannot be read."""
    return read_item(Item(path.name, path), side)


def read_item(item: Item, side: int) -> torch.Tensor | str:
    """The same of an item of a source."""
    found = read(item, side, SHOWN)
    return found.problem or unit(next(iter(found.squares.values())))


def read(item: Item, side: int, readings: Readings, digest: str = "") -> Picture:
    """Read the picture of an item, but not decode it if it has this digest."""
    content = item.content
    try:
        if isinstance(content, Image.Image):
            picture = content.copy()
            found = _digest(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
            return Picture(found, {} if found == digest else squares(picture, side, readings))
        if not isinstance(content, bytes):
            content = content.read_bytes()  # pyright: ignore[reportOptionalMemberAccess]
        found = _digest(content)
        if found == digest:
            return Picture(found, {})
        with opened(content) as picture:
            return Picture(found, squares(picture, side, readings, content))
    except UnidentifiedImageError:
        return Picture("", {}, "UnidentifiedImageError: no picture of a format that is read")
    # a broken file can make Pillow's decoders raise any exception
    except Exception as error:
        return Picture("", {}, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:32]
