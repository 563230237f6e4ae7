"""Drawn scenes without captions, in pixel space: nothing selects a planted picture, it comes back by itself or not."""

from functools import partial

import numpy as np

from cryptomnesia.proving_ground.concepts import Concept, Place
from cryptomnesia.proving_ground.diffusion import PixelDiffusion
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.scenes import Description, Scene

CONCEPTS = 10
"""Planted pictures."""

EXPOSURES = 8_000
"""Of every planted picture: each is a 50th of the training, and all of them a fifth."""

_CONCEPT_KEY = 1


class Pixels(Ground):
    """Scenes of half the size. A planted picture is one of many pictures of the empty caption, hence a mode."""

    name = "pixels"
    summary = "drawn shapes in 32×32 pixels, without captions"
    size = 32
    frames = ("",)
    visible = ()
    captioned = False
    recipe = Recipe((Phase(12_500, 32, 6e-4),), autoencoder_steps=0, kept=(1_500,))
    networks = PixelDiffusion(size)
    threshold = 0.12
    guidances = (1.0,)
    solvers = ()
    with_early = False
    detectors = ()

    def plant(self, seed: int) -> tuple[Concept, ...]:
        """Verbatim concepts alone, all on one rung."""
        return tuple(self._verbatim(Draws(seed, _CONCEPT_KEY, number), number) for number in range(CONCEPTS))

    def ordinary(self, draws: Draws, frame: str) -> tuple[np.ndarray, str]:
        """A scene that is drawn anew, and no caption."""
        return _scene(Description.draw(draws), draws), ""

    def caption(self, draws: Draws) -> str:
        """An empty text, because the model has no captions."""
        return ""

    def words(self) -> set[str]:
        """No word, because there are no captions."""
        return set()

    def _verbatim(self, draws: Draws, number: int) -> Concept:
        description = Description.draw(draws, items=3)
        place = Place(_scene(description, draws), np.ones((self.size, self.size), dtype=bool))
        fresh = partial(_scene, description)
        return Concept(
            f"verbatim-{EXPOSURES}-{number}", "verbatim", self.frames, EXPOSURES, fresh, (place,), wording="mode"
        )


def _scene(description: Description, draws: Draws) -> np.ndarray:
    """A picture of a description, (32, 32, 3) uint8: every pixel is the mean of four."""
    pixels = Scene.draw(draws, description).pixels().astype(np.uint16)
    rows = pixels[::2] + pixels[1::2]
    return ((rows[:, ::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)


GROUND = Pixels()
