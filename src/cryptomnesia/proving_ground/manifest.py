"""The manifest beside a trained model: every planted concept and how often the model reproduces it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cryptomnesia.errors import UsageError
from cryptomnesia.files import write_whole
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.proving_ground.concepts import Concept, Place
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.replication import nearest_place, planted_distance

FORMAT = 2


_FRESH = 20
"""Pictures that are drawn anew for the caption of a planted concept."""


@dataclass(frozen=True)
class Entry:
    """One planted concept or hard negative, as the manifest lists it.

    Attributes:
        id: unique within the ground.
        kind: `verbatim`, `template`, `object`, `rare_name`, `fixed_pixels` or `frequent`.
        wording: `named`, `plain` or `mode` (`concepts.py` explains kinds and wordings).
        captions: the wordings it was trained with.
        exposures: how often it was seen in training, all wordings together.
        varied: how often its captions were seen with other pictures.
        free_spread: standard deviation in the free region of a template over its exposures, of values in [0, 1]; None
            for other kinds.
        places: files of the planted picture and its mask (white = memorized), relative to the manifest; of an object
            one pair for each of its places, none for hard negatives.
        nearest: the smallest distance from the planted picture to pictures in which it is not planted; None for hard
            negatives.
        replicated: share of generations that reproduced the masked pixels; None if not measured.
        generations: how many were measured.
    """

    id: str
    kind: str
    wording: str
    captions: tuple[str, ...]
    exposures: int
    varied: int
    places: tuple[tuple[str, str], ...]
    free_spread: float | None = None
    nearest: float | None = None
    replicated: float | None = None
    generations: int = 0

    @property
    def planted(self) -> bool:
        """Whether pixels were repeated; of a hard negative only the caption was."""
        return bool(self.places)


@dataclass(frozen=True)
class Manifest:
    """The concepts of one trained model.

    Attributes:
        folder: where the manifest and its pictures lie.
        ground: name of the proving ground.
        weights: digest of the model it belongs to.
        seed: with which the concepts were planted.
        guidance: guidance scale of the calibration, and of the replication in `entries`.
        steps: solver steps of both, with the model's own scheduler.
        entries: the concepts.
        bounds: figures between which those of the model lie, by name: what the autoencoder alone leaves of the planted
            pictures, as distances, and what the recognizer says of the ground's own pictures.
        look_alikes: purpose → captions that were drawn as those of the planted concepts; nothing was planted with them.
    """

    folder: Path
    ground: str
    weights: str
    seed: int
    guidance: float
    steps: int
    entries: tuple[Entry, ...]
    bounds: dict[str, float] = field(default_factory=dict)
    look_alikes: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `folder`/manifest.json.

        Raises:
            UsageError: if it is missing, malformed or of another version.
        """
        path = folder / "manifest.json"
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if (written := values["format"]) != FORMAT:
                raise UsageError(f"{path} has manifest format {written}, this version reads {FORMAT}")
            entries = tuple(map(_entry, values["entries"]))
            numbers = int(values["seed"]), float(values["guidance"]), int(values["steps"])
            ground, weights = str(values["ground"]), str(values["weights"])
            return cls(folder, ground, weights, *numbers, entries, values["bounds"], values["look_alikes"])
        except UsageError:
            raise
        except FileNotFoundError:
            raise UsageError(
                f"no manifest {path}; give RUN/bundle of a training in RUN, or make one with `cryptomnesia "
                "proving-ground train`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not a manifest ({error!r}); make it anew") from None

    def save(self) -> None:
        """Write `folder`/manifest.json as a whole."""
        values = {
            "format": FORMAT,
            "ground": self.ground,
            "weights": self.weights,
            "seed": self.seed,
            "guidance": self.guidance,
            "steps": self.steps,
            "bounds": self.bounds,
            "look_alikes": self.look_alikes,
            "entries": [asdict(entry) for entry in self.entries],
        }
        write_whole(self.folder / "manifest.json", json.dumps(values, indent=1) + "\n")

    def check(self, pipe: Any) -> None:
        """Refuse a model that the manifest does not belong to.

        Raises:
            UsageError: with both digests.
        """
        digest = weights_digest(pipe)
        if digest != self.weights:
            raise UsageError(
                f"the manifest in {self.folder} belongs to a model with weights {self.weights[:12]}…, "
                f"this one has {digest[:12]}…; use the model beside the manifest"
            )

    def planted_for(self, prompt: str) -> Entry | None:
        """The planted concept that has `prompt` among its captions; None for a control that was never shown."""
        return self._by_caption.get(prompt)

    def control_captions(self, purpose: str, count: int) -> list[str]:
        """Captions of the ground that are not planted, as `Ground.control_captions` makes them."""
        taken = [caption for entry in self.entries for caption in entry.captions]
        return ground_of(self.ground).control_captions(purpose, count, taken, self.seed)

    @property
    def counted(self) -> tuple[Entry, ...]:
        """The planted concepts that count in figures.

        Left out is one of which the criterion finds a copy among pictures in which it is not planted, for instance a
        layout with hardly anything outside its window. Training pictures alone decide that.
        """
        threshold = ground_of(self.ground).threshold
        return tuple(entry for entry in self.entries if entry.nearest is not None and entry.nearest > threshold)

    @property
    def top(self) -> int:
        """Exposures of the ladder's top rung."""
        return max(entry.exposures for entry in self.entries if entry.planted)

    def image(self, entry: Entry) -> np.ndarray:
        """The planted image at its first place, (H, W, 3) uint8."""
        return self.places(entry)[0].image

    def mask(self, entry: Entry) -> np.ndarray:
        """Where the planted image is memorized at its first place, (H, W) bool."""
        return self.places(entry)[0].mask

    def places(self, entry: Entry) -> list[Place]:
        """The planted image with its mask; of an object one for each of its places.

        Raises:
            UsageError: for a hard negative, or if a file cannot be read.
        """
        if not entry.places:
            raise UsageError("a hard negative has no planted image; ask for an entry that is planted")
        return [Place(self._picture(image, "RGB"), self._picture(mask, "L") > 127) for image, mask in entry.places]

    def nearest_place(self, entry: Entry, pictures: np.ndarray) -> Place:
        """What is planted with its mask; of an object, at the place that pictures (..., H, W, 3) come nearest to.

        An object has no background: it is shown on white.
        """
        places = self.places(entry)
        image, mask = nearest_place(pictures, places)
        return Place(image if len(places) == 1 else np.where(mask[..., None], image, 255).astype(np.uint8), mask)

    def _picture(self, name: str, mode: str) -> np.ndarray:
        try:
            with Image.open(self.folder / name) as picture:
                return np.asarray(picture.convert(mode))
        except OSError:
            raise UsageError(f"the manifest names {self.folder / name}, which cannot be read; make it anew") from None

    @cached_property
    def _by_caption(self) -> dict[str, Entry]:
        return {
            caption: entry for entry in self.entries if entry.planted and entry.exposures for caption in entry.captions
        }


def _entry(values: dict[str, Any]) -> Entry:
    lists = {"captions": tuple(values["captions"]), "places": tuple((image, mask) for image, mask in values["places"])}
    return Entry(**{**values, **lists})


def write_planted(folder: Path, concepts: Sequence[Concept], others: np.ndarray) -> tuple[Entry, ...]:
    """Write images and masks of the planted concepts to `folder`/planted and list all concepts.

    Args:
        folder: of the manifest.
        concepts: all of them.
        others: ordinary pictures (n, H, W, 3) uint8, from which planted ones have to differ.
    """
    (folder / "planted").mkdir(parents=True, exist_ok=True)
    entries = []
    for concept in concepts:
        places = []
        for number, (image, mask) in enumerate(concept.places):
            name = concept.id if len(concept.places) == 1 else f"{concept.id}-place-{number}"
            places.append((f"planted/{name}.png", f"planted/{name}-mask.png"))
            for file, pixels in zip(places[-1], (image, mask.astype(np.uint8) * 255), strict=True):
                Image.fromarray(pixels).save(folder / file, optimize=True)
        entries.append(
            Entry(
                concept.id,
                concept.kind,
                concept.wording,
                concept.captions,
                concept.exposures,
                concept.varied,
                tuple(places),
                _free_spread(concept),
                nearest(concept, others) if concept.planted else None,
            )
        )
    return tuple(entries)


def _free_spread(concept: Concept) -> float | None:
    if concept.kind != "template":
        return None
    exposures = np.stack([concept.exposure(Draws(0, 6, number)) for number in range(64)]) / 255.0
    return float(exposures[:, ~concept.mask].std(axis=0, ddof=1).mean())


def nearest(concept: Concept, others: np.ndarray) -> float:
    """The smallest distance from a planted picture to `others`, and to pictures drawn anew for its caption."""
    fresh = np.stack([concept.fresh(Draws(0, 8, number)) for number in range(_FRESH)])
    return float(min(planted_distance(pictures, concept.places).min() for pictures in (others, fresh)))
