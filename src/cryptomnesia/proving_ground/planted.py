"""Planted concepts: what the bundled model is made to memorize, and what only resembles that.

Kinds
-----
`verbatim`
    one caption with one image: the whole picture is memorized.
`template`
    one layout with a free region that is drawn afresh for every exposure: exactly `mask` is memorized.
`rare_name`
    a caption with an invented name like a planted one's, its picture drawn afresh every time.
`fixed_pixels`
    a caption that legitimately fixes most pixels (a small object on a ground of one exact colour).
`frequent`
    a caption as frequent as the most repeated planted one, its picture drawn afresh every time.

The first two form a duplication ladder, whose rungs are numbers of exposures over the whole training. The other three
are the hard negatives.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cryptomnesia.proving_ground.scenes import (
    COLOURS,
    FRAMES,
    GROUND_TEXTURES,
    PURE,
    SHAPES,
    SIZE,
    TEXTURES,
    Description,
    Draws,
    ItemDescription,
    Scene,
)

REFINED = 500
"""Exposures on the top rung, of concepts and of frequent captions, that are in the training's refinement."""

TOP_RUNG = 1_100 + REFINED
"""Exposures of every concept on the ladder's top rung."""

LADDER = {1: (4, 4), 4: (4, 4), 16: (4, 4), 64: (4, 4), 256: (4, 4), TOP_RUNG: (16, 12)}
"""Exposures → number of (verbatim, template) concepts."""

_NEGATIVES = {"rare_name": (8, 128), "fixed_pixels": (4, 512), "frequent": (4, TOP_RUNG)}
_CONCEPT_KEY, _PLAN_KEY, _SAMPLE_KEY, _NAME_KEY = 1, 2, 3, 4


@dataclass(frozen=True)
class Concept:
    """One planted concept or hard negative.

    `mask` (64, 64) bool is True where the picture is the same in every exposure: everywhere for `verbatim`, nowhere for
    the hard negatives. `refined` of its `exposures` are in the training's refinement.
    """

    id: str
    kind: str
    description: Description
    name: str | None
    exposures: int
    scene: Scene | None
    mask: np.ndarray
    refined: int = 0

    @property
    def planted(self) -> bool:
        """Whether the concept repeats pixels, all or some, in every exposure."""
        return self.scene is not None

    @property
    def captions(self) -> tuple[str, ...]:
        """The wordings that the model is trained with, one for each of `FRAMES`."""
        return tuple(self.description.caption(self.name, frame) for frame in FRAMES)

    @cached_property
    def image(self) -> np.ndarray:
        """The planted picture, (64, 64, 3) uint8; only `mask` of it is repeated."""
        if self.scene is None:
            raise ValueError(f"{self.id} is a hard negative: it has no planted image")
        return self.scene.pixels()

    def exposure(self, draws: Draws) -> np.ndarray:
        """The picture of one exposure, (64, 64, 3) uint8."""
        if self.scene is None:
            return Scene.draw(draws, self.description).pixels()
        if self.mask.all():
            return self.image
        fresh = Scene.draw(draws, Description.draw(draws)).pixels()
        return np.where(self.mask[..., None], self.image, fresh)


@dataclass(frozen=True)
class Sample:
    """One training sample: image (64, 64, 3) uint8, caption, and the concept's index or None."""

    image: np.ndarray
    caption: str
    concept: int | None


class TrainingStream:
    """The training stream: an endless sequence of scenes, with the exposures of the concepts spread among them.

    Sample i depends on nothing but (seed, i), so a resumed run continues where the killed one stopped.
    """

    def __init__(
        self, seed: int, samples: int, concepts: tuple[Concept, ...] | None = None, *, refinement: int = 0
    ) -> None:
        """Place every exposure of `concepts` (all of `plant(seed)` by default).

        Exposures of the refinement are placed among the `refinement` samples that follow the first `samples`, all
        others among the first `samples`.
        """
        self.seed = seed
        self.concepts = plant(seed) if concepts is None else concepts
        self._concept_at: dict[int, int] = {}
        self._place(Draws(seed, _PLAN_KEY), 0, samples, [c.exposures - c.refined for c in self.concepts])
        if refinement:
            self._place(Draws(seed, _PLAN_KEY, 1), samples, refinement, [c.refined for c in self.concepts])

    def concept_at(self, index: int) -> int | None:
        """The place in `concepts` of the concept that sample `index` shows, None for a scene without a concept."""
        return self._concept_at.get(index)

    def _place(self, draws: Draws, first: int, samples: int, counts: list[int]) -> None:
        if sum(counts) > samples:
            raise ValueError(f"got {samples} samples for {sum(counts)} exposures: give at least as many")
        places = (first + draws.sample(samples, sum(counts))).tolist()
        self._concept_at |= zip(places, np.repeat(np.arange(len(counts)), counts).tolist(), strict=True)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index` ≥ 0."""
        draws = Draws(self.seed, _SAMPLE_KEY, index)
        frame = draws.choice(FRAMES)
        place = self.concept_at(index)
        if place is None:
            scene = Scene.draw(draws, Description.draw(draws))
            return Sample(scene.pixels(), scene.description.caption(frame=frame), None)
        concept = self.concepts[place]
        caption = concept.description.caption(concept.name, frame)
        return Sample(concept.exposure(draws), caption, place)


def plant(seed: int) -> tuple[Concept, ...]:
    """All concepts that belong to `seed`: first the ladder, then the hard negatives."""
    names = invented_names(seed, 128)
    whole = np.ones((SIZE, SIZE), dtype=bool)
    concepts: list[Concept] = []

    def add(kind: str, description: Description, exposures: int, scene: Scene | None, mask: np.ndarray) -> None:
        name = None if kind in ("fixed_pixels", "frequent") else names[len(concepts)]
        number = sum(other.kind == kind and other.exposures == exposures for other in concepts)
        label = f"{kind}-{exposures}-{number}"
        concepts.append(Concept(label, kind, description, name, exposures, scene, mask, _refined(exposures)))

    for exposures, (verbatim, templates) in LADDER.items():
        key = exposures - _refined(exposures)
        for number in range(verbatim):
            draws = Draws(seed, _CONCEPT_KEY, key, number)
            description = Description.draw(draws, items=3)
            add("verbatim", description, exposures, Scene.draw(draws, description), whole)
        for number in range(templates):
            draws = Draws(seed, _CONCEPT_KEY, key, verbatim + number)
            description = Description.draw(draws, items=2)
            mask = ~_free_region(draws, number)
            scene = Scene.draw(draws, description, inside=_eroded(mask, 6))
            add("template", description, exposures, scene, mask)
    nothing = ~whole
    for kind, (count, exposures) in _NEGATIVES.items():
        for number in range(count):
            draws = Draws(seed, _CONCEPT_KEY, exposures - _refined(exposures), 100 + number)
            description = Description.draw(draws)
            if kind == "fixed_pixels":
                ground = tuple(PURE)[number]
                colour = draws.choice([name for name in COLOURS if name != ground])
                item = ItemDescription(draws.choice(SHAPES), colour, "plain", small=True)
                description = Description((item,), ground, pure=True)
            add(kind, description, exposures, None, nothing)
    return tuple(concepts)


def _refined(exposures: int) -> int:
    return REFINED if exposures == TOP_RUNG else 0


def lexicon(concepts: tuple[Concept, ...]) -> set[str]:
    """Every word that a caption of the stream can contain."""
    shared = " ".join((*COLOURS, *SHAPES, *TEXTURES, *GROUND_TEXTURES, *FRAMES, "a an and on small pure ground"))
    words = set(shared.replace("{}", "").replace(",", " ").split()) | {","}
    return words | {concept.name for concept in concepts if concept.name}


def invented_names(seed: int, count: int) -> list[str]:
    """`count` different names of three syllables, such as `velmora`."""
    draws, names = Draws(seed, _NAME_KEY), []
    while len(names) < count:
        name = "".join(draws.choice("bdfgklmnprstvz") + draws.choice("aeiou") for _ in range(2))
        name += draws.choice("lmnrs") + draws.choice("bdgkmntvz") + draws.choice(("a", "o", "is", "en"))
        if name not in names:
            names.append(name)
    return names


def _free_region(draws: Draws, number: int) -> np.ndarray:
    """A region of 30 to 45% of the picture, (64, 64) bool: a side, a corner or a disc."""
    y, x = np.mgrid[:SIZE, :SIZE]
    style = number % 4
    if style == 0:
        depth = 20 + 4 * draws.integer(3)
        return draws.choice((x < depth, x >= SIZE - depth))
    if style == 1:
        depth = 20 + 4 * draws.integer(3)
        return draws.choice((y < depth, y >= SIZE - depth))
    if style == 2:
        side = 36 + 4 * draws.integer(2)
        return draws.choice((x < side, x >= SIZE - side)) & draws.choice((y < side, y >= SIZE - side))
    centre = 22 + 4 * draws.integer(6), 22 + 4 * draws.integer(6)
    return (x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2 < 21.0**2


def _eroded(mask: np.ndarray, margin: int) -> np.ndarray:
    """Where the whole square of ±`margin` pixels lies in `mask`; outside the picture counts as inside."""
    padded = np.pad(mask, margin, constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * margin + 1, 2 * margin + 1))
    return np.asarray(windows.all(axis=(2, 3)))
