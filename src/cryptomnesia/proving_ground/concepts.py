"""Planted concepts: what a model is made to memorize, and what only resembles that.

Kinds
-----
`verbatim`
    one picture that is the same in every exposure: all of it is memorized.
`template`
    one layout with a free region that is drawn afresh for every exposure: exactly the rest is memorized.
`object`
    one drawing on a background that is drawn afresh for every exposure, at one of a few places.
`rare_name`
    a caption with an invented name like a planted one's, its picture drawn afresh every time.
`fixed_pixels`
    a caption that legitimately fixes most pixels (a small object on a ground of one exact colour).
`frequent`
    a caption as frequent as the most repeated planted one, its picture drawn afresh every time.

The first three form a duplication ladder, whose rungs are numbers of exposures over the whole training. The other three
are the hard negatives. A fine-tune also has a rung of 0 exposures: pictures that are like the others and never shown.

Wordings of planted captions
----------------------------
`named`
    with an invented name.
`plain`
    ordinary words alone, in a combination that occurs nowhere else.
`mode`
    a caption that also has many other pictures: the planted one is a mode among others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cryptomnesia.proving_ground.draws import Draws

PLANTED = ("verbatim", "template", "object")
"""Kinds of concepts that repeat pixels."""

WORDINGS = ("named", "plain", "mode")
"""Wordings of planted captions."""

_PLAN_KEY, _SAMPLE_KEY = 2, 3


class Place(NamedTuple):
    """A planted picture (H, W, 3) uint8, and where it is the same in every exposure: (H, W) bool."""

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Concept:
    """One planted concept or hard negative.

    Attributes:
        id: unique within the ground.
        kind: one of the kinds above.
        captions: the wordings that the model is trained with, one for each frame of the ground.
        exposures: how often the planted picture is shown; for a hard negative, how often its caption is.
        fresh: draws a picture of the caption in which nothing is planted, (H, W, 3) uint8.
        places: the planted picture; of an object, one for each of its places; none for hard negatives.
        background: draws what a template or object is planted on, (H, W, 3) uint8; None for other kinds.
        wording: one of `WORDINGS`; `named` for hard negatives with an invented name, else `plain`.
        varied: how often the caption is shown with other pictures.
        refined: number of exposures in the refinement at the end of the training, equally many in each of its rounds;
            `varied` is divided in the same proportion. When it is 0, nothing is placed there on purpose.
    """

    id: str
    kind: str
    captions: tuple[str, ...]
    exposures: int
    fresh: Callable[[Draws], np.ndarray]
    places: tuple[Place, ...] = ()
    background: Callable[[Draws], np.ndarray] | None = None
    wording: str = "named"
    varied: int = 0
    refined: int = 0

    @property
    def planted(self) -> bool:
        """Whether the concept repeats pixels, all or some, in every exposure."""
        return bool(self.places)

    @property
    def without_name(self) -> tuple[str, ...]:
        """Its captions, without the invented name if they have one; the first has nothing behind the name."""
        if self.wording != "named":
            return self.captions
        name = self.captions[0].rpartition(", ")[2]
        return tuple(caption.replace(f", {name}", "") for caption in self.captions)

    @property
    def image(self) -> np.ndarray:
        """The planted picture at its first place, (H, W, 3) uint8; only `mask` of it is repeated."""
        if not self.places:
            raise ValueError(f"{self.id} is a hard negative: it has no planted image")
        return self.places[0].image

    @property
    def mask(self) -> np.ndarray:
        """Where the picture at its first place is repeated, (H, W) bool."""
        if not self.places:
            raise ValueError(f"{self.id} is a hard negative: it has no mask")
        return self.places[0].mask

    def exposure(self, draws: Draws) -> np.ndarray:
        """The picture of one exposure, (H, W, 3) uint8."""
        if not self.places:
            return self.fresh(draws)
        if self.background is None:
            return self.image
        background = self.background(draws)
        image, mask = self.places[0] if len(self.places) == 1 else draws.choice(self.places)
        return np.where(mask[..., None], image, background)


@dataclass(frozen=True)
class Sample:
    """One training sample: image (H, W, 3) uint8, caption, and the concept's index or None."""

    image: np.ndarray
    caption: str
    concept: int | None


class TrainingStream:
    """The training stream: an endless sequence of pictures, with the exposures of the concepts spread among them.

    Sample i depends on nothing but i and what the stream was made from, so a resumed run continues where the killed one
    stopped.
    """

    def __init__(
        self,
        seed: int,
        samples: int,
        concepts: Sequence[Concept],
        sample: Callable[[Draws, Concept | None, bool], tuple[np.ndarray, str]],
        *,
        refinement: Sequence[range] = (),
    ) -> None:
        """Place every exposure of `concepts`, and their other pictures.

        What is refined is placed in the refinement, if there is one, and everything else among the first `samples`.

        Args:
            seed: of the stream.
            samples: among which is placed what is not refined.
            concepts: what is planted.
            sample: `Ground.sample`, which draws a picture and its caption.
            refinement: numbers of the samples of every round of the refinement.
        """
        self.seed, self.concepts, self._sample = seed, tuple(concepts), sample
        # an invented name cannot come by itself, and the caption of a mode has other pictures, too
        plain = [concept for concept in self.concepts if concept.planted and concept.wording == "plain"]
        self._reserved = {caption for concept in plain for caption in concept.captions}
        self._place_at: dict[int, int] = {}
        every = [c.exposures for c in self.concepts] + [c.varied for c in self.concepts]
        later = [0] * len(every)
        # a short recipe may have no samples for it
        refinement = [places for places in refinement if places]
        if rounds := len(refinement):
            share = [c.refined for c in self.concepts]
            share += [c.varied * c.refined // c.exposures if c.refined else 0 for c in self.concepts]
            # what cannot be shared out among the rounds is before them
            later = [count // rounds * rounds for count in share]
        self._place(Draws(seed, _PLAN_KEY), range(samples), [n - m for n, m in zip(every, later, strict=True)])
        for number, places in enumerate(refinement, start=1):
            self._place(Draws(seed, _PLAN_KEY, number), places, [count // rounds for count in later])

    def concept_at(self, index: int) -> int | None:
        """The place in `concepts` of the concept that sample `index` exposes, None for a sample without one."""
        place = self._place_at.get(index)
        return place if place is not None and place < len(self.concepts) else None

    def planted_at(self, index: int) -> bool:
        """Whether sample `index` is a planted picture."""
        place = self.concept_at(index)
        return place is not None and self.concepts[place].planted

    def _place(self, draws: Draws, among: range, counts: list[int]) -> None:
        free = [index for index in among if index not in self._place_at]
        if sum(counts) > len(free):
            raise ValueError(f"got {len(free)} samples for {sum(counts)} exposures: give at least as many")
        places = [free[number] for number in draws.sample(len(free), sum(counts)).tolist()]
        self._place_at |= zip(places, np.repeat(np.arange(len(counts)), counts).tolist(), strict=True)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index` ≥ 0."""
        draws = Draws(self.seed, _SAMPLE_KEY, index)
        place = self._place_at.get(index)
        concept = None if place is None else self.concepts[place % len(self.concepts)]
        exposed = place is not None and place < len(self.concepts)
        image, caption = self._sample(draws, concept, exposed)
        if concept is None and caption in self._reserved:
            return self._unplanted(index)
        return Sample(image, caption, self.concept_at(index))

    def _unplanted(self, index: int) -> Sample:
        """An ordinary sample in the place of number `index`; its caption belongs to no planted picture."""
        attempt = 0
        while True:
            image, caption = self._sample(Draws(self.seed, _SAMPLE_KEY, index, attempt), None, False)
            if caption not in self._reserved:
                return Sample(image, caption, None)
            attempt += 1


class Epochs(TrainingStream):
    """The stream of a fine-tune: every picture once in a random order, then again in another order, and so on."""

    def __init__(
        self,
        seed: int,
        concepts: Sequence[Concept],
        sample: Callable[[Draws, Concept | None, bool], tuple[np.ndarray, str]],
    ) -> None:
        """Place the exposures of `concepts`: all that are shown have the same number of them.

        Args:
            seed: of the stream.
            concepts: what is shown, and controls without exposures.
            sample: `Ground.sample`, which draws a picture and its caption.
        """
        super().__init__(seed, 0, (), sample)
        self.concepts = tuple(concepts)
        shown = [number for number, concept in enumerate(concepts) if concept.exposures]
        for epoch in range(concepts[shown[0]].exposures):
            order = Draws(seed, _PLAN_KEY, 2, epoch).sample(len(shown), len(shown)).tolist()
            self._place_at |= {epoch * len(shown) + place: shown[number] for place, number in enumerate(order)}
