"""One line of a result for every image, and the same as JSON. Loads nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptomnesia import __version__

if TYPE_CHECKING:
    from cryptomnesia.settings import Sampling


class Row(NamedTuple):
    """One line of the table; `crossed` is None for an image that is not flagged."""

    prompt: str
    seed: int
    score: float
    p_value: float
    crossed: int | None
    panel: Path | None

    @property
    def verdict(self) -> str:
        """In one or two words."""
        if self.crossed is not None:
            return "memorized?"
        return "ordinary" if self.score == self.score else "could not tell"


class Region(NamedTuple):
    """What one map says of one picture; `fraction` and `p_value` are None without a calibration."""

    prompt: str
    seed: int
    map: str
    mean: float
    fraction: float | None
    p_value: float | None


def regions_to_json(rows: list[Region], sampling: "Sampling", rate: float) -> dict[str, Any]:
    """The regions and the settings they hold for, as JSON values."""
    return {
        "cryptomnesia": __version__,
        "pixel_rate": rate,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "maps": [row._asdict() for row in rows],
    }


def to_json(rows: list[Row], sampling: "Sampling", detector: str, rate: float) -> dict[str, Any]:
    """The rows and the settings they hold for, as JSON values; a NaN is null."""

    def known(value: float) -> float | None:
        return value if value == value else None

    return {
        "cryptomnesia": __version__,
        "detector": detector,
        "rate": rate,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "images": [
            {
                "prompt": row.prompt,
                "seed": row.seed,
                "score": known(row.score),
                "p_value": known(row.p_value),
                "verdict": row.verdict,
                "flagged": row.crossed is not None,
                "first_step": None if row.crossed is None else row.crossed + 1,
                "panel": None if row.panel is None else str(row.panel),
            }
            for row in rows
        ],
    }
