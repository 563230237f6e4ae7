"""Curves as SVG. Style sheets colour them by the class of a line, a band or a mark.

Labels and classes are put in as they are: they are no place for words from outside.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

WIDTH, MARGIN, EDGE = 460, 44, 8
"""Of a drawing, of the room for labels at its left and below it, and of the room at its right, in units of the SVG."""


@dataclass(frozen=True)
class Axes:
    """Where values lie in a drawing.

    Attributes:
        left: value at the left end of the axis that runs to the right.
        right: value at its right end.
        low: value at the lower end of the axis that runs up.
        high: value at its upper end.
        top: room above the highest value, in units of the SVG.
        height: of the drawing, likewise.
    """

    left: float
    right: float
    low: float
    high: float
    top: float = EDGE
    height: float = 220

    @property
    def bottom(self) -> float:
        """The place of the lowest value from the top."""
        return self.height - MARGIN

    def x(self, value: float) -> float:
        """The place of a value from the left."""
        return MARGIN + (value - self.left) / max(self.right - self.left, 1e-9) * (WIDTH - MARGIN - EDGE)

    def y(self, value: float) -> float:
        """The place of a value from the top."""
        return self.top + (self.high - value) / max(self.high - self.low, 1e-9) * (self.bottom - self.top)

    def line(self, name: str, xs: Sequence[float], ys: Sequence[float]) -> str:
        """A line of this class through points, with gaps where a value is NaN."""
        known = groupby(zip(xs, ys, strict=True), key=lambda point: not math.isnan(point[1]))
        runs = [self._places(points) for is_known, points in known if is_known]
        return "".join(f'<polyline class="{name}" points="{places}"/>' for places in runs)

    def band(self, name: str, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> str:
        """The area of this class between two lines."""
        outline = [*zip(xs, highs, strict=True), *list(zip(xs, lows, strict=True))[::-1]]
        return f'<polygon class="band {name}" points="{self._places(outline)}"/>'

    def dots(self, name: str, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Dots of this class at the values that are not NaN."""
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if not math.isnan(y)]
        return "".join(f'<circle class="{name}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.5"/>' for x, y in known)

    def labels(self, across: Iterable[tuple[float, str]], up: Iterable[tuple[float, str]]) -> str:
        """Values with their labels along both axes, and lines at those of the axis that runs up."""
        parts = []
        for value, label in across:
            x = self.x(value)
            # half of a label in the middle of the right end would lie outside
            anchor = "end" if x > WIDTH - 2 * EDGE else "middle"
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 16}" text-anchor="{anchor}">{label}</text>')
        for value, label in up:
            y = f"{self.y(value):.1f}"
            parts.append(f'<text x="{MARGIN - 6}" y="{y}" dominant-baseline="middle" text-anchor="end">{label}</text>')
            parts.append(f'<line class="grid" x1="{MARGIN}" x2="{WIDTH - EDGE}" y1="{y}" y2="{y}"/>')
        return "".join(parts)

    def svg(self, parts: Iterable[str], label: str, across: str) -> str:
        """The drawing, with a label for those who do not see it, and the name of the axis that runs to the right."""
        name = f'<text x="{(MARGIN + WIDTH) / 2}" y="{self.height - 6}" text-anchor="middle">{across}</text>'
        box = f'viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{label}"'
        return f"<svg {box}>{''.join(parts)}{name}</svg>"

    def _places(self, points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def round_values(low: float, high: float, most: int = 6) -> list[float]:
    """At most so many round values (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    raw = max(high - low, 1e-9) / (most - 1)
    power = 10 ** math.floor(math.log10(raw))
    # a little slack: 0.2 · 5 is not below 1 for a computer
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [
        place * distance for place in range(math.ceil(low / distance - 1e-9), math.floor(high / distance + 1e-9) + 1)
    ]
