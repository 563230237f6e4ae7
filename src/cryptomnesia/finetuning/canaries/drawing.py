"""The pictures and names of canaries and of the reserve, drawn by a seed.

A picture shows some coloured shapes, plain or striped, on a textured ground. It is no noise, so that a model can learn
it as it learns a picture of its training. Pictures of one seed are independent draws of one distribution: a model that
was trained on none of them cannot tell canaries from the reserve but by chance.
"""

import hashlib
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Kind = Literal["canary", "reserve"]

_SIDE = 256
"""A picture is drawn at least so many pixels wide, and at least twice as wide as it will be: edges become smooth."""

_SHAPES = (5, 9)
"""Least and largest number of shapes of a picture."""

_RADII = (0.07, 0.28)
"""Least and largest radius of a shape, as shares of the picture's side."""

_ROUND = 48
"""Corners of a shape that looks round."""

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def picture(seed: int, kind: Kind, number: int, size: int) -> Image.Image:
    """A picture of `size` × `size` pixels as RGB; what it shows does not depend on the size."""
    rng = _generator(seed, kind, number, "picture")
    finer = max(2, -(-_SIDE // size))
    side = finer * size
    shown = Image.blend(_clouds(rng, 4, side), _clouds(rng, 24, side), 0.3)
    for _ in range(rng.integers(*_SHAPES, endpoint=True)):
        mask = Image.new("L", (side, side))
        ImageDraw.Draw(mask).polygon(_outline(rng, side), fill=255)
        shown.paste(_filling(rng, side), mask=mask)
    return shown.reduce(finer)


def caption(seed: int, kind: Kind, number: int) -> str:
    """The caption of a picture, with an invented name of two words that no other picture has."""
    rng = _generator(seed, kind, number, "name")
    words = ["".join(rng.choice(_SYLLABLES, 3)).capitalize() for _ in range(2)]
    return f"a picture of {' '.join(words)}"


def digest(shown: Image.Image) -> str:
    """SHA-256 of the pixels of a picture as RGB, whatever the file is in which it lies."""
    return hashlib.sha256(f"{shown.size} ".encode() + shown.convert("RGB").tobytes()).hexdigest()


def _generator(seed: int, *key: object) -> np.random.Generator:
    """A stream of random numbers of its own for every key."""
    whole = hashlib.sha256(" ".join(map(str, (seed, *key))).encode()).digest()
    return np.random.default_rng(int.from_bytes(whole, "big"))


def _clouds(rng: np.random.Generator, cells: int, side: int) -> Image.Image:
    """Random colours at `cells` × `cells` places, and smooth between them."""
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def _outline(rng: np.random.Generator, side: int) -> list[tuple[float, float]]:
    """The corners of a shape around a random place: three to nine, or so many that it is round, every fourth time."""
    centre, radius = rng.random((2, 1)), rng.uniform(*_RADII)
    corners, least = (_ROUND, 1.0) if rng.random() < 0.25 else (int(rng.integers(3, 9, endpoint=True)), 0.5)
    reach = radius * rng.uniform(least, 1.0, corners)
    angles = 2 * np.pi * (np.arange(corners) / corners + rng.random())
    x, y = (side * (centre + reach * np.stack([np.cos(angles), np.sin(angles)]))).round()
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _filling(rng: np.random.Generator, side: int) -> Image.Image:
    """What a shape is filled with: a colour, or for every other shape stripes of two colours."""
    first, second = (tuple(map(int, colour)) for colour in rng.integers(0, 256, (2, 3)))
    filling = Image.new("RGB", (side, side), first)
    if rng.random() < 0.5:
        draw = ImageDraw.Draw(filling)
        stripes, across = int(rng.integers(8, 33)), rng.random() < 0.5
        edges = [side * edge // stripes for edge in range(stripes + 1)]
        for start, stop in zip(edges[::2], edges[1::2], strict=False):
            draw.rectangle((start, 0, stop - 1, side) if across else (0, start, side, stop - 1), fill=second)
    return filling
