"""The manifest beside the bundled model: every planted concept and how often the model reproduces it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cryptomnesia.errors import UsageError
from cryptomnesia.files import write_whole
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.proving_ground.planted import Concept

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One planted concept or hard negative, as the manifest lists it.

    Attributes:
        id: `kind-exposures-number`.
        kind: `verbatim`, `template`, `rare_name`, `fixed_pixels` or `frequent`.
        captions: the wordings it was trained with.
        exposures: how often it was seen in training, all wordings together.
        image: file of the planted image, relative to the manifest; None for hard negatives.
        mask: file of the mask (white = memorized), relative to the manifest; None for hard negatives.
        replicated: share of generations that reproduced the masked pixels; None if not measured.
        generations: how many were measured.
    """

    id: str
    kind: str
    captions: tuple[str, ...]
    exposures: int
    image: str | None
    mask: str | None
    replicated: float | None = None
    generations: int = 0

    @property
    def planted(self) -> bool:
        """Whether pixels were repeated; of a hard negative only the caption was."""
        return self.image is not None


@dataclass(frozen=True)
class Manifest:
    """The concepts of one trained model.

    Attributes:
        folder: where the manifest and its pictures lie.
        weights: digest of the model it belongs to.
        seed: with which the concepts were planted.
        guidance: guidance scale that the replication was measured with.
        steps: solver steps that the replication was measured with, of the model's own scheduler.
        entries: the concepts.
    """

    folder: Path
    weights: str
    seed: int
    guidance: float
    steps: int
    entries: tuple[Entry, ...]

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
            entries = tuple(Entry(**{**entry, "captions": tuple(entry["captions"])}) for entry in values["entries"])
            return cls(
                folder, values["weights"], int(values["seed"]), float(values["guidance"]), int(values["steps"]), entries
            )
        except UsageError:
            raise
        except FileNotFoundError:
            raise UsageError(f"no manifest {path}; make one with `cryptomnesia proving-ground train`") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not a manifest ({error!r}); make it anew") from None

    def save(self) -> None:
        """Write `folder`/manifest.json as a whole."""
        values = {
            "format": FORMAT,
            "weights": self.weights,
            "seed": self.seed,
            "guidance": self.guidance,
            "steps": self.steps,
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
        """The planted concept that has `prompt` among its captions."""
        return self._by_caption.get(prompt)

    def image(self, entry: Entry) -> np.ndarray:
        """The planted image, (64, 64, 3) uint8."""
        return self._picture(entry.image, "RGB")

    def mask(self, entry: Entry) -> np.ndarray:
        """Where the planted image is memorized, (64, 64) bool."""
        return self._picture(entry.mask, "L") > 127

    def _picture(self, name: str | None, mode: str) -> np.ndarray:
        if name is None:
            raise UsageError("a hard negative has no planted image; ask for an entry that is planted")
        try:
            with Image.open(self.folder / name) as picture:
                return np.asarray(picture.convert(mode))
        except OSError:
            raise UsageError(f"the manifest names {self.folder / name}, which cannot be read; make it anew") from None

    @cached_property
    def _by_caption(self) -> dict[str, Entry]:
        return {caption: entry for entry in self.entries if entry.planted for caption in entry.captions}


def write_planted(folder: Path, concepts: Sequence[Concept]) -> tuple[Entry, ...]:
    """Write images and masks of the planted concepts to `folder`/planted and list all concepts."""
    (folder / "planted").mkdir(parents=True, exist_ok=True)
    entries = []
    for concept in concepts:
        image = mask = None
        if concept.planted:
            image, mask = f"planted/{concept.id}.png", f"planted/{concept.id}-mask.png"
            Image.fromarray(concept.image).save(folder / image)
            Image.fromarray(concept.mask.astype(np.uint8) * 255).save(folder / mask)
        entries.append(Entry(concept.id, concept.kind, concept.captions, concept.exposures, image, mask))
    return tuple(entries)
