"""One line of a result for every image, and the same as JSON. Loads nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptomnesia import __version__

if TYPE_CHECKING:
    from cryptomnesia.localization import Located
    from cryptomnesia.settings import Sampling
    from cryptomnesia.tracing.trajectory import Place


class Row(NamedTuple):
    """One line of the table; `crossed` is None for an image that is not flagged, `instead` says what was done."""

    prompt: str
    seed: int
    score: float
    p_value: float
    crossed: int | None
    panel: Path | None
    instead: str = ""

    @property
    def verdict(self) -> str:
        """In one or two words."""
        if self.crossed is not None:
            return "memorized?"
        return "ordinary" if self.score == self.score else "could not tell"


class Region(NamedTuple):
    """What one map says of one picture.

    `error` is the root mean square of the pixels' standard errors, None where nothing was estimated; `fraction` and
    both p-values are None without a calibration.
    """

    prompt: str
    seed: int
    map: str
    mean: float
    mean_p_value: float | None
    error: float | None
    fraction: float | None
    p_value: float | None
    panel: str
    maps: str

    @classmethod
    def of(cls, located: "Located", name: str, panel: Path, maps: Path) -> "Region":
        """What the map `name` says; the picture's panel and file of maps."""
        mask, error = located.masks.get(name), located.errors.get(name)
        return cls(
            prompt=located.prompt,
            seed=located.seed,
            map=name,
            mean=located.maps[name].mean().item(),
            mean_p_value=None if mask is None else mask.mean_p_value.item(),
            error=None if error is None else _known(error.square().mean().sqrt().item()),
            fraction=None if mask is None else mask.fraction.item(),
            p_value=None if mask is None else mask.p_value.item(),
            panel=str(panel),
            maps=str(maps),
        )


def regions_to_json(
    rows: list[Region], model: str, scheduler: str, sampling: "Sampling", at: "dict[str, Place]", rate: float | None
) -> dict[str, Any]:
    """The regions and the settings they hold for, as JSON values; `at` is the evaluation that each map looks at."""
    return {
        "cryptomnesia": __version__,
        **_settings(model, scheduler, sampling),
        "pixel_rate": rate,
        "at": at,
        "maps": [row._asdict() for row in rows],
    }


def to_json(
    rows: list[Row], model: str, scheduler: str, sampling: "Sampling", detector: str, rate: float
) -> dict[str, Any]:
    """The rows and the settings they hold for, as JSON values; a NaN is null."""
    return {
        "cryptomnesia": __version__,
        **_settings(model, scheduler, sampling),
        "detector": detector,
        "rate": rate,
        "images": [
            {
                "prompt": row.prompt,
                "seed": row.seed,
                "score": _known(row.score),
                "p_value": _known(row.p_value),
                "verdict": row.verdict,
                "flagged": row.crossed is not None,
                "first_step": None if row.crossed is None else row.crossed + 1,
                "panel": None if row.panel is None else str(row.panel),
                "instead": row.instead or None,
            }
            for row in rows
        ],
    }


def _settings(model: str, scheduler: str, sampling: "Sampling") -> dict[str, Any]:
    return {
        "model": model,
        "scheduler": scheduler,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "height": sampling.height,
        "width": sampling.width,
        "options": dict(sampling.options),
    }


def _known(value: float) -> float | None:
    return value if value == value else None
