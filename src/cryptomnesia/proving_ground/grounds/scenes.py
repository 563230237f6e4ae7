"""Drawn scenes: shapes on a ground, at a guidance scale of 1.5. Every planted caption has an invented name."""

from functools import partial

import numpy as np

from cryptomnesia.proving_ground.concepts import Concept, Place
from cryptomnesia.proving_ground.draws import Draws, invented_names
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.latent import LatentText
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.regions import eroded, free_region
from cryptomnesia.proving_ground.scenes import (
    COLOURS,
    GROUND_TEXTURES,
    PURE,
    SHAPES,
    SIZE,
    TEXTURES,
    Description,
    ItemDescription,
    Scene,
)

REFINED = 500
"""Exposures on the top rung, of concepts and of frequent captions, that are in the training's last phase."""

TOP_RUNG = 1_100 + REFINED
"""Exposures of every concept on the ladder's top rung."""

LADDER = {1: (4, 4), 4: (4, 4), 16: (4, 4), 64: (4, 4), 256: (4, 4), TOP_RUNG: (16, 12)}
"""Exposures → number of (verbatim, template) concepts."""

_NEGATIVES = {"rare_name": (8, 128), "fixed_pixels": (4, 512), "frequent": (4, TOP_RUNG)}
_CONCEPT_KEY = 1


class Scenes(Ground):
    """One to three shapes on a ground; captions name shapes, colours and textures."""

    name = "scenes"
    summary = "drawn shapes; every planted caption has an invented name; guidance 1.5"
    frames = ("{}", "a picture of {}", "a print of {}", "{}, poster")
    visible = (SHAPES, tuple(COLOURS))
    recipe = Recipe((Phase(15_000, 32, 7e-4), Phase(12_500, 16, 2.5e-4, middle=0.75)))
    networks = LatentText()
    recognizer_steps = 7_000
    threshold = 0.12
    structure = 0.42
    guidances = (1.5, 3.0, 5.0)
    localizers = (
        "settled-detail",
        "collapse",
        "curvature-difference",
        "curvature-difference-checkpoint",
        "score-difference",
        "score-difference-checkpoint",
    )

    def plant(self, seed: int) -> tuple[Concept, ...]:
        """The ladder's verbatim and template concepts, then the hard negatives."""
        names = invented_names(seed, 128)
        concepts: list[Concept] = []
        for exposures, (verbatim, templates) in LADDER.items():
            for number in range(verbatim + templates):
                draws = Draws(seed, _CONCEPT_KEY, exposures - _refined(exposures), number)
                name = names[len(concepts)]
                if number < verbatim:
                    concepts.append(self._verbatim(draws, f"{exposures}-{number}", name, exposures))
                else:
                    concepts.append(self._template(draws, exposures, number - verbatim, name))
        for kind, (count, exposures) in _NEGATIVES.items():
            for number in range(count):
                draws = Draws(seed, _CONCEPT_KEY, exposures - _refined(exposures), 100 + number)
                name = names[len(concepts)] if kind == "rare_name" else None
                concepts.append(self._negative(draws, kind, number, exposures, name))
        return tuple(concepts)

    def ordinary(self, draws: Draws, frame: str) -> tuple[np.ndarray, str]:
        """A scene that is drawn anew."""
        scene = Scene.draw(draws, Description.draw(draws))
        return scene.pixels(), scene.description.caption(frame=frame)

    def caption(self, draws: Draws) -> str:
        """The caption of a scene."""
        return Description.draw(draws).caption(frame=draws.choice(self.frames))

    def words(self) -> set[str]:
        """Colours, shapes, textures, and what joins them."""
        shared = " ".join(
            (*COLOURS, *SHAPES, *TEXTURES, *GROUND_TEXTURES, *self.frames, "a an and on small pure ground")
        )
        return {*shared.replace("{}", "").replace(",", " ").split(), ","}

    def _captions(self, description: Description, name: str | None) -> tuple[str, ...]:
        return tuple(description.caption(name, frame) for frame in self.frames)

    def _verbatim(self, draws: Draws, label: str, name: str, exposures: int) -> Concept:
        description = Description.draw(draws, items=3)
        place = Place(Scene.draw(draws, description).pixels(), np.ones((SIZE, SIZE), dtype=bool))
        return Concept(
            f"verbatim-{label}",
            "verbatim",
            self._captions(description, name),
            exposures,
            partial(_scene, description),
            (place,),
            refined=_refined(exposures),
        )

    def _template(self, draws: Draws, exposures: int, number: int, name: str) -> Concept:
        description = Description.draw(draws, items=2)
        mask = ~free_region(draws, number)
        scene = Scene.draw(draws, description, inside=eroded(mask, 6))
        return Concept(
            f"template-{exposures}-{number}",
            "template",
            self._captions(description, name),
            exposures,
            partial(_scene, description),
            (Place(scene.pixels(), mask),),
            _any_scene,
            refined=_refined(exposures),
        )

    def _negative(self, draws: Draws, kind: str, number: int, exposures: int, name: str | None) -> Concept:
        description = Description.draw(draws)
        if kind == "fixed_pixels":
            ground = tuple(PURE)[number]
            colour = draws.choice([colour for colour in COLOURS if colour != ground])
            item = ItemDescription(draws.choice(SHAPES), colour, "plain", small=True)
            description = Description((item,), ground, pure=True)
        return Concept(
            f"{kind}-{exposures}-{number}",
            kind,
            self._captions(description, name),
            exposures,
            partial(_scene, description),
            wording="named" if name else "plain",
            refined=_refined(exposures),
        )


def _scene(description: Description, draws: Draws) -> np.ndarray:
    """A picture of a description."""
    return Scene.draw(draws, description).pixels()


def _any_scene(draws: Draws) -> np.ndarray:
    """A picture of anything."""
    return _scene(Description.draw(draws), draws)


def _refined(exposures: int) -> int:
    return REFINED if exposures == TOP_RUNG else 0


GROUND = Scenes()
