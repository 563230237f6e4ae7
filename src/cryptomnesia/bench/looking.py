"""What is to be seen in pictures."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.errors import UsageError
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.recognizer import FEATURES, Recognizer
from cryptomnesia.proving_ground.replication import nearest_place, planted_distance
from cryptomnesia.proving_ground.structure import structural_similarity


class Look(Protocol):
    """What is to be seen in pictures; a proving ground knows it."""

    def __call__(self, trials: Sequence[Trial], pictures: np.ndarray) -> list[dict[str, Any]]:
        """What is seen in every picture (B, H, W, 3) uint8, as JSON values.

        Returns:
            `pixels` and `structure`: whether it is a copy by either criterion, None for a caption with which nothing
            was planted; `distance` and `similarity`, by which that was decided; `recognized`: whether it shows all that
            its caption says; `shown`: which share of it; `confidence` of the classifier.
        """
        ...

    def frechet(self, pictures: np.ndarray) -> float:
        """How far the distribution of pictures (n, H, W, 3) uint8 is from the ground's own, NaN for too few."""
        ...

    def mask(self, trial: Trial, picture: np.ndarray) -> np.ndarray:
        """Where a picture (H, W, 3) uint8 of a memorized caption can be memorized, (H, W) bool."""
        ...


class GroundLook:
    """Compares pictures of a proving ground with the planted ones, and by its classifier with their captions."""

    def __init__(self, manifest: Manifest) -> None:
        """Load the classifier.

        Raises:
            UsageError: for a ground without a cut-off for edges, or without a classifier.
        """
        ground = ground_of(manifest.ground)
        while ground.origin is not None:
            ground = ground.origin
        if ground.structure is None:
            raise UsageError(f"{ground.name} has no cut-off for the similarity of edges; give scenes or drawings")
        self._manifest = manifest
        self._threshold, self._cut = ground_of(manifest.ground).threshold, ground.structure
        self._recognizer = Recognizer.load((ground.like or ground).bundle)

    def __call__(self, trials: Sequence[Trial], pictures: np.ndarray) -> list[dict[str, Any]]:
        """What is seen in every picture (B, H, W, 3) uint8; see `Look`."""
        unit = pictures.astype(np.float32) / 255
        captions = [trial.prompt for trial in trials]
        mentioned = self._recognizer.mentioned(captions)
        with torch.no_grad():
            odds = self._recognizer(torch.from_numpy(unit).permute(0, 3, 1, 2) * 2 - 1)
        seen = odds > 0
        # of the words that could be seen, how sure the classifier is about each
        confidence = odds.abs().sigmoid().mean(dim=1)
        found = []
        for row, (trial, picture) in enumerate(zip(trials, pictures, strict=True)):
            words = mentioned[row]
            found.append(
                {
                    **self._copies(trial, picture),
                    "recognized": bool((seen[row] | ~words).all()),
                    "shown": float(seen[row][words].float().mean()) if words.any() else None,
                    "confidence": float(confidence[row]),
                }
            )
        return found

    def _copies(self, trial: Trial, picture: np.ndarray) -> dict[str, Any]:
        if trial.group != MEMORIZED:
            return {"pixels": None, "structure": None, "distance": None, "similarity": None}
        places = self._manifest.places(self._entry(trial))
        distance = float(planted_distance(picture, places))
        similarity = float(structural_similarity(picture[None], places)[0])
        return {
            "pixels": distance <= self._threshold,
            "structure": similarity >= self._cut,
            "distance": distance,
            "similarity": similarity,
        }

    def _entry(self, trial: Trial) -> Entry:
        entry = self._manifest.planted_for(trial.prompt)
        assert entry is not None
        return entry

    def frechet(self, pictures: np.ndarray) -> float:
        """The Fréchet distance of pictures (n, H, W, 3) uint8 from the ground's own in the classifier's features."""
        return self._recognizer.frechet(pictures.astype(np.float32) / 255) if len(pictures) > FEATURES else float("nan")

    def mask(self, trial: Trial, picture: np.ndarray) -> np.ndarray:
        """The mask of what is planted under the caption, at the place that the picture comes nearest to."""
        return nearest_place(picture, self._manifest.places(self._entry(trial))).mask
