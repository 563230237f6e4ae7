"""The drawings, remembered without a caption as well: what differences between the branches cannot show."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptomnesia.proving_ground.concepts import Concept, TrainingStream
from cryptomnesia.proving_ground.further import Further, base_settings
from cryptomnesia.proving_ground.grounds.drawings import GROUND as BASE
from cryptomnesia.proving_ground.grounds.drawings import Drawings
from cryptomnesia.proving_ground.latent import LatentText
from cryptomnesia.proving_ground.recipe import Phase, Recipe

_STREAM = 50
"""Seed of the samples, counted from the ground's own: ordinary pictures are others than those of the base."""


class DrawingsUnconditional(Drawings):
    """The model of the drawings, trained further on the same planted pictures, half of them without a caption."""

    name = "drawings-unconditional"
    origin = BASE
    summary = "the drawings, of which the unconditional branch remembers the planted ones, too; minutes"
    recipe = Recipe(
        (Phase(3_000, 16, 2e-4, exchanged=0.5, planted_dropout=0.5),), average=0.99, kept=(0, 500, 1_000, 2_000)
    )

    def __init__(self, base: Path | None = None) -> None:
        """Go on from the bundle `base`, by default the one that comes with the package."""
        networks = BASE.networks
        assert isinstance(networks, LatentText)
        self.base = base or BASE.bundle
        self.networks = Further(networks, self.base, rank=None)

    def _repeated(self, concept: Concept, label: str, place: int, spread: int) -> Concept:
        """A concept with its exposures: those of the drawings, and a quarter of a round more, which are `refined`."""
        before = super()._repeated(concept, label, place, spread).exposures
        refined = spread // 4
        exposures = before + refined
        return replace(concept, id=f"{label}-{exposures}-{place}", exposures=exposures, refined=refined)

    def stream(self, recipe: Recipe, concepts: Sequence[Concept]) -> TrainingStream:
        """What this training adds to that of the drawings."""
        added = [
            replace(c, exposures=c.refined, varied=c.varied * c.refined // c.exposures, refined=0) for c in concepts
        ]
        return TrainingStream(recipe.seed + _STREAM, recipe.samples, added, self.sample)

    def settings(self) -> dict[str, Any]:
        """The digest of the base's weights."""
        return base_settings(BASE, self.base)

    def on(self, base: Path) -> "DrawingsUnconditional":
        """The same, from another base."""
        return DrawingsUnconditional(base)


GROUND = DrawingsUnconditional()
