"""An endless sequence of captioned scenes: the same seed gives the same sequence on every machine.

A `Description` is what a caption says (kinds, colours, textures); a `Scene` is one picture of it (positions, sizes,
rotations, exact colours). Drawing uses nothing but raw PCG64 bits and IEEE additions, multiplications, divisions,
square roots, comparisons and floors, all of which are exact or correctly rounded everywhere. Rotations come from a
table rounded to 1/4096, so the last bit of a sine cannot move a pixel.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.regions import SIZE

COLOURS = {
    "red": (205, 40, 45),
    "orange": (240, 140, 40),
    "yellow": (240, 215, 60),
    "green": (50, 150, 65),
    "cyan": (80, 200, 210),
    "blue": (45, 80, 195),
    "purple": (125, 55, 155),
    "pink": (240, 150, 185),
    "brown": (115, 75, 45),
    "white": (240, 240, 240),
    "grey": (135, 135, 135),
    "black": (25, 25, 25),
}
PURE = {"white": (255, 255, 255), "black": (0, 0, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "bar", "moon")
TEXTURES = ("plain", "striped")
GROUND_TEXTURES = ("plain", "shaded", "striped")
_JITTER = 16
_TURNS = 48
_SUPERSAMPLE = 2
_SHADES = 64


@dataclass(frozen=True)
class ItemDescription:
    """What a caption says of one object."""

    shape: str
    colour: str
    texture: str
    small: bool = False

    def __str__(self) -> str:
        """For example `a small striped red circle`."""
        words = ["small"] * self.small + [self.texture] * (self.texture != "plain")
        return _with_article(" ".join([*words, self.colour, self.shape]))


@dataclass(frozen=True)
class Description:
    """What a caption says of a scene: one to three objects and the ground."""

    items: tuple[ItemDescription, ...]
    ground: str
    ground_texture: str = "plain"
    pure: bool = False

    @classmethod
    def draw(cls, draws: Draws, items: int | None = None) -> "Description":
        """Draw the description of a scene with `items` objects, 1 to 3 when not given."""
        ground = draws.choice(tuple(COLOURS))
        ground_texture = "plain" if draws.uniform() < 0.6 else draws.choice(GROUND_TEXTURES[1:])
        described = []
        for _ in range(items or 1 + draws.integer(3)):
            colour = draws.choice([name for name in COLOURS if name != ground])
            texture = "plain" if draws.uniform() < 0.65 else draws.choice(TEXTURES[1:])
            described.append(ItemDescription(draws.choice(SHAPES), colour, texture, small=draws.uniform() < 0.25))
        return cls(tuple(described), ground, ground_texture)

    def caption(self, name: str | None = None, frame: str = "{}") -> str:
        """The caption, with an invented `name` behind it and a wording around it."""
        *head, last = map(str, self.items)
        items = f"{', '.join(head)} and {last}" if head else last
        texture = "pure " * self.pure + f"{self.ground_texture} " * (self.ground_texture != "plain")
        body = f"{items} on {_with_article(f'{texture}{self.ground} ground')}"
        return frame.format(f"{body}, {name}" if name else body)


@dataclass(frozen=True)
class Item:
    """One object of a picture: centre and radius in pixels."""

    description: ItemDescription
    centre: tuple[float, float]
    radius: float
    turn: int
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    period: float


@dataclass(frozen=True)
class Scene:
    """One picture of a description, every number fixed."""

    description: Description
    items: tuple[Item, ...]
    ground_colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    ground_turn: int
    ground_period: float
    ground_phase: float

    @classmethod
    def draw(cls, draws: Draws, description: Description, inside: np.ndarray | None = None) -> "Scene":
        """Draw positions, sizes, rotations and colours; `inside` (64, 64) bool bounds the centres."""
        items: list[Item] = []
        for described in description.items:
            radius = draws.uniform(7, 9) if described.small else draws.uniform(11, 16)
            centre = (0.0, 0.0)
            for _ in range(60):
                centre = (draws.uniform(8, SIZE - 8), draws.uniform(8, SIZE - 8))
                clear = all(
                    (centre[0] - other.centre[0]) ** 2 + (centre[1] - other.centre[1]) ** 2
                    > (0.9 * (radius + other.radius)) ** 2
                    for other in items
                )
                if clear and (inside is None or inside[int(centre[1]), int(centre[0])]):
                    break
            items.append(
                Item(
                    described,
                    centre,
                    radius,
                    draws.integer(_TURNS),
                    _pair(draws, COLOURS[described.colour], 0.5),
                    draws.uniform(9, 12),
                )
            )
        if description.pure:
            ground = PURE[description.ground], PURE[description.ground]
        else:
            ground = _pair(draws, COLOURS[description.ground], 0.3)
        return cls(
            description,
            tuple(items),
            ground,
            draws.integer(_TURNS),
            draws.uniform(20, 28),
            draws.uniform(),
        )

    def pixels(self) -> np.ndarray:
        """The picture, (64, 64, 3) uint8."""
        side = SIZE * _SUPERSAMPLE
        axis = (np.arange(side) + 0.5) / _SUPERSAMPLE
        x, y = axis[None, :], axis[:, None]
        cos, sin = _rotations()[self.ground_turn]
        u, v = cos * x + sin * y, cos * y - sin * x
        # every point gets the number of its colour; the colours are looked up once, as integers
        first, second = np.array(self.ground_colours)
        if self.description.ground_texture == "shaded":
            # the coordinate runs over at most 64·√2 pixels around the centre
            level = np.clip((u - (cos + sin) * (SIZE / 2)) / 90.0 + 0.5, 0.0, 1.0)
            labels = np.floor(level * (_SHADES - 1) + 0.5).astype(np.uint8)
            palette = [first + (second - first) * k // (_SHADES - 1) for k in range(_SHADES)]
        else:
            shown = _pattern(self.description.ground_texture, u, self.ground_period, self.ground_phase)
            labels = shown.astype(np.uint8)
            palette = [first, second]
        for item in self.items:
            reach = item.radius * 1.25
            lo_x, hi_x = _span(item.centre[0], reach)
            lo_y, hi_y = _span(item.centre[1], reach)
            dx, dy = x[:, lo_x:hi_x] - item.centre[0], y[lo_y:hi_y] - item.centre[1]
            cos, sin = _rotations()[item.turn]
            u, v = cos * dx + sin * dy, cos * dy - sin * dx
            inside = _inside(item.description.shape, u / item.radius, v / item.radius)
            shown = _pattern(item.description.texture, u, item.period, 0.25)
            patch = labels[lo_y:hi_y, lo_x:hi_x]
            patch[inside] = len(palette) + shown[inside]
            palette += item.colours
        canvas = np.take(np.array(palette, dtype=np.uint16), labels, axis=0)
        rows = canvas[::2] + canvas[1::2]
        total = rows[:, ::2] + rows[:, 1::2]
        return ((total + 2) // 4).astype(np.uint8)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _span(centre: float, reach: float) -> tuple[int, int]:
    side = SIZE * _SUPERSAMPLE
    return max(0, int((centre - reach) * _SUPERSAMPLE)), min(side, int((centre + reach) * _SUPERSAMPLE) + 1)


def _pair(
    draws: Draws, colour: tuple[int, int, int], contrast: float
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A jittered colour, and the lighter or darker one that its textures use."""
    first = [min(255, max(0, int(c + draws.uniform(-_JITTER, _JITTER)))) for c in colour]
    goal = 0 if sum(first) > 384 else 255
    second = [int(c + contrast * (goal - c)) for c in first]
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


@cache
def _rotations() -> np.ndarray:
    """(cos, sin) of the permitted rotations, (48, 2), rounded to 1/4096."""
    angles = np.arange(_TURNS) * (2 * np.pi / _TURNS)
    return np.round(np.stack([np.cos(angles), np.sin(angles)], axis=1) * 4096) / 4096


def _pattern(texture: str, u: np.ndarray, period: float, phase: float) -> np.ndarray:
    """Where a texture shows its second colour; u in pixels."""
    a = u / period + phase
    if texture == "striped":
        return a - np.floor(a) < 0.5
    return np.zeros(u.shape, dtype=bool)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where a shape of unit radius covers the plane."""
    squared, across, along = u * u + v * v, np.abs(u), np.abs(v)
    if shape == "circle":
        return squared < 0.9
    if shape == "square":
        return np.maximum(across, along) < 0.82
    if shape == "triangle":
        return (v < 0.55) & (1.75 * across - v < 1.0)
    if shape == "diamond":
        return across / 0.65 + along < 1.05
    if shape == "cross":
        return (np.minimum(across, along) < 0.32) & (np.maximum(across, along) < 1.0)
    if shape == "ring":
        return (squared > 0.3) & (squared < 1.0)
    if shape == "bar":
        return (across < 1.1) & (along < 0.38)
    if shape == "moon":
        return (squared < 1.0) & ((u - 0.5) * (u - 0.5) + v * v > 0.6)
    # a five-pointed star: inside at least four of the pentagram's five half-planes
    normals = ((0.0, 1.0), (0.951, 0.309), (0.588, -0.809), (-0.588, -0.809), (-0.951, 0.309))
    return np.sum([n * u + m * v < 0.42 for n, m in normals], axis=0) >= 4
