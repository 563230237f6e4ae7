"""What a training does over its checkpoints, and no more than what was measured."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.places import place, read_text
from cryptomnesia.statistics import Estimate, covering_exact

FILE = "finetune.json"
"""Name of the file of a course in the folder of its run."""


@dataclass(frozen=True)
class Seen:
    """What a checkpoint makes under the caption of a training picture.

    Attributes:
        images: number of images that were made.
        copies: how many of them are copies of the picture, whole or in part.
        copied: whether the picture counts as copied: at least half of the images are copies of it; where several
            pictures share the caption, or the model reads none, at least two are, and a share of half divided by them.
        score: of the image that shows a copy best; a copy is above 0 (`cryptomnesia.finetuning.comparing`). NaN of the
            base.
        by: what shows that this image is a copy, or would show it: `pixels` or `edges`, or `both` of a part.
        part: where it is nearest to the picture: (top, left, bottom, right) as shares of the picture.
        learnt: by how much the checkpoint restores the picture from noise better than the base does: the mean over
            noise levels of the logarithm of the denoising error, in nats.
        p_value: how often a held-out picture would be learnt as well; NaN without held-out pictures.
        seed: of the nearest image.
        file: the nearest image in the folder of the run, `NAME.png`, "" if it is not kept. Beside it are the training
            picture, `NAME.training.png`.
        maps: `curvature` and `score`, its differences from the base model (arXiv:2605.26756) → files in the folder.
    """

    images: int
    copies: int
    copied: bool
    score: float
    by: str
    part: tuple[float, float, float, float]
    learnt: float
    p_value: float = math.nan
    seed: int = 0
    file: str = ""
    maps: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether the nearest image is compared with the picture as a whole."""
        return tuple(self.part) == (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Point:
    """What is measured of one checkpoint.

    Attributes:
        name: of the checkpoint.
        step: of the training; 0 for the base model.
        scale: of the LoRA; 1 as it was trained.
        digest: SHA-256 of its files, "" for the base model.
        seen: for every training picture that was asked about, in their order.
        others: number of images that were made under held-out captions.
        elsewhere: how many of them are copies of any training picture as a whole.
        diversity: how far images of one caption from different noise lie apart, relative to those of the base model.
        flagged: share of the training captions that the detector flags at the rate of the run; NaN where it was not
            asked, or there are too few held-out captions.
    """

    name: str
    step: int
    scale: float
    digest: str
    seen: Sequence[Seen] = field(repr=False)
    others: int = 0
    elsewhere: int = 0
    diversity: float = math.nan
    flagged: float = math.nan

    @property
    def copied(self) -> list[int]:
        """The numbers of the pictures that are copied."""
        return [number for number, seen in enumerate(self.seen) if seen.copied]

    def held(self, alpha: float) -> list[int]:
        """The numbers of the pictures that the checkpoint restores from noise better than held-out ones, at a rate."""
        return [number for number, seen in enumerate(self.seen) if seen.p_value <= alpha]

    @property
    def share(self) -> Estimate:
        """The share of the pictures that are copied, with its exact 95% interval (Clopper–Pearson)."""
        found = len(self.copied) / max(1, len(self.seen))
        return covering_exact(Estimate(found, found, found), len(self.seen))


@dataclass(frozen=True)
class Course:
    """What a training does over its checkpoints.

    Attributes:
        about: what it depends on, as JSON values.
        pictures: names of the training pictures that were asked about.
        digests: SHA-256 of their files.
        points: one per checkpoint, the base model first, by step.
        scales: of the LoRA of the last checkpoint, one per scale, by scale; empty if it was not asked for.
        alpha: rate at which pictures are held and captions are flagged.
        duplicates: groups of names of pictures that are nearly the same.
        notes: what to know about the run, in sentences.
    """

    about: Mapping[str, Any]
    pictures: Sequence[str]
    digests: Sequence[str]
    points: Sequence[Point]
    scales: Sequence[Point] = ()
    alpha: float = 0.05
    duplicates: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    @property
    def start(self) -> Point | None:
        """The first checkpoint that copies a picture; None if there is none."""
        return next((point for point in self.points if point.copied), None)

    @property
    def before(self) -> Point | None:
        """The checkpoint before copying starts: the last one to keep; the last of all if none copies."""
        start = self.start
        return self.points[-1 if start is None else self.points.index(start) - 1] if self.points else None

    @property
    def highest_scale(self) -> Point | None:
        """The largest scale of the LoRA, of those that were asked, below all at which it copies a picture."""
        fine = None
        for point in self.scales:
            if point.copied:
                break
            fine = point
        return fine

    @property
    def exit_code(self) -> int:
        """1 if a checkpoint copies a picture, else 3 if nothing was measured but the base model, else 0."""
        if self.start is not None:
            return 1
        return 0 if len(self.points) > 1 else 3

    def to_json(self) -> dict[str, Any]:
        """The course as JSON values."""
        start, before, scale = self.start, self.before, self.highest_scale
        return _plain(
            {
                "about": self.about,
                "alpha": self.alpha,
                "start": None if start is None else start.step,
                "after": None if start is None or before is None else before.step,
                "keep": None if before is None else before.name,
                "highest_scale": None if scale is None else scale.scale,
                "pictures": self.pictures,
                "sha256": self.digests,
                "duplicates": self.duplicates,
                "notes": self.notes,
                "points": [self._values(point) for point in self.points],
                "scales": [self._values(point) for point in self.scales],
            }
        )

    def _values(self, point: Point) -> dict[str, Any]:
        found = {"copied": len(point.copied), "share": vars(point.share), "held": len(point.held(self.alpha))}
        return {**vars(point), **found, "seen": [vars(seen) for seen in point.seen]}

    @classmethod
    def load(cls, folder: str | Path) -> "Course":
        """The course that a run has written to its folder so far.

        Raises:
            UsageError: if there is none.
        """
        try:
            found = json.loads(read_text(place(folder) / FILE))
        except (OSError, ValueError) as error:
            raise UsageError(f"no course in {folder} ({error}); give the folder of a finetune run") from None
        return cls(
            about=found["about"],
            pictures=found["pictures"],
            digests=found["sha256"],
            points=[_point_of(values) for values in found["points"]],
            scales=[_point_of(values) for values in found["scales"]],
            alpha=found["alpha"],
            duplicates=found["duplicates"],
            notes=found["notes"],
        )

    def save(self, folder: Path) -> None:
        """Write `finetune.json`, and the page `index.html`."""
        from cryptomnesia.files import write_whole
        from cryptomnesia.report.course import page

        write_whole(folder / FILE, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        write_whole(folder / "index.html", page(self))


def _point_of(values: Mapping[str, Any]) -> Point:
    """The point of JSON values, in which NaN is null."""

    def known(kind: type[Point] | type[Seen], given: Mapping[str, Any]) -> dict[str, Any]:
        names = {one.name for one in fields(kind)}
        return {name: math.nan if value is None else value for name, value in given.items() if name in names}

    seen = [Seen(**{**known(Seen, one), "part": tuple(one["part"])}) for one in values["seen"]]
    return Point(**{**known(Point, values), "seen": seen})


def _plain(value: Any) -> Any:
    """JSON values, in which numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
