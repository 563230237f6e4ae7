"""Emoji in six styles on coloured backgrounds: real pictures, captions of ordinary words, guidance 3."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
from PIL import Image, ImageFilter

from cryptomnesia.proving_ground.concepts import PLANTED, WORDINGS, Concept, Place, TrainingStream
from cryptomnesia.proving_ground.draws import Draws, invented_names
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.latent import LatentText
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.regions import SIZE, eroded, free_region
from cryptomnesia.proving_ground.replication import tiles_of
from cryptomnesia.proving_ground.scenes import COLOURS, GROUND_TEXTURES, PURE, Description, Scene
from cryptomnesia.proving_ground.sprites import ARTISTS, SIDE, THINGS, drawing

LADDER = {32: 6, 64: 6, 128: 6, 256: 6, 512: 6, 1_024: 14}
"""Exposures before the second round of the refinement → number of concepts of each planted kind.

Every round of the refinement has as many again. The wordings of the concepts of a kind take turns.
"""

TINTS = ("red", "orange", "green", "cyan", "blue", "purple", "pink")
"""Colours of planted objects whose caption is of ordinary words."""

_NEGATIVES = {"rare_name": (8, 128), "fixed_pixels": (4, 512), "frequent": (4, 1_024)}
_CONCEPT_KEY = 1
_PLURALS = ("cherries", "grapes")
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Picture:
    """What a caption says: one or two things by one artist, and the ground.

    `names_artist` and `names_ground` tell whether the caption says these.
    """

    subjects: tuple[str, ...]
    artist: str
    ground: str
    texture: str = "plain"
    pure: bool = False
    names_artist: bool = True
    names_ground: bool = True

    @classmethod
    def draw(cls, draws: Draws, subjects: int | None = None) -> "Picture":
        """Draw what is shown: `subjects` things, one or two when not given."""
        count = subjects or (1 if draws.uniform() < 0.6 else 2)
        first = draws.choice(tuple(THINGS))
        shown = (first,)
        if count == 2:
            shown = (first, draws.choice([subject for subject in THINGS if subject != first]))
        artist, ground = draws.choice(tuple(ARTISTS)), draws.choice(tuple(COLOURS))
        texture = "plain" if draws.uniform() < 0.6 else draws.choice(GROUND_TEXTURES[1:])
        silent = draws.uniform()
        return cls(shown, artist, ground, texture, names_artist=silent > 0.2, names_ground=not 0.1 < silent < 0.3)

    def caption(self, name: str | None = None, frame: str = "{}") -> str:
        """The caption, with an invented `name` behind it and a wording around it."""
        words = " and ".join(map(_with_article, self.subjects))
        if self.names_artist:
            words += f" by {self.artist}"
        if self.names_ground:
            texture = "pure " * self.pure + f"{self.texture} " * (self.texture != "plain")
            words += f" on {_with_article(texture + self.ground)} ground"
        return frame.format(f"{words}, {name}" if name else words)

    def paint(self, draws: Draws, inside: np.ndarray | None = None, *, small: bool = False) -> np.ndarray:
        """Draw places, sizes, angles and colours, and paint the picture.

        Args:
            draws: of this picture.
            inside: (64, 64) bool, bounds the centres of the things.
            small: whether the things are smaller than usual.

        Returns:
            Pixels (64, 64, 3) uint8.
        """
        spots: list[tuple[float, float, float]] = []
        canvas = _ground(draws, self)
        sides = (20, 24) if small else (36, 54) if len(self.subjects) == 1 else (26, 36)
        for _ in self.subjects:
            side = draws.uniform(*sides)
            margin = min(side / 2, 24)
            x = y = 0.0
            for _ in range(60):
                x, y = draws.uniform(margin, SIZE - margin), draws.uniform(margin, SIZE - margin)
                clear = all((x - a) ** 2 + (y - b) ** 2 > (0.4 * (side + other)) ** 2 for a, b, other in spots)
                if clear and (inside is None or inside[int(y), int(x)]):
                    break
            spots.append((x, y, side))
        for subject, (x, y, side) in zip(self.subjects, spots, strict=True):
            colours, opacity = _placed(
                self.artist, subject, (x, y), side, draws.uniform(-20, 20), draws.uniform() < 0.5
            )
            canvas = canvas * (1 - opacity) + colours @ _jitter(draws).T
        return _pixels(canvas)


class Drawings(Ground):
    """One or two things by one artist on a plain, shaded or striped ground."""

    name = "drawings"
    summary = "emoji in six styles; captions with invented names and of ordinary words; guidance 3"
    frames = ("{}", "a picture of {}", "a sticker of {}", "{}, poster")
    visible = (tuple(THINGS), tuple(COLOURS))
    recipe = Recipe(
        (
            Phase(18_000, 64, 8e-4),
            Phase(9_000, 64, 3e-4, middle=0.75),
            Phase(4_500, 32, 4e-4, middle=0.4, planted_dropout=0.0),
            Phase(12_000, 16, 3e-4, middle=0.5, planted_dropout=0.0),
            Phase(24_000, 16, 4e-4, middle=0.5, planted_dropout=0.0),
            # a model that was trained on partly wrong captions, as data from the web has, needs guidance
            Phase(15_000, 16, 3e-4, middle=0.5, exchanged=0.5, planted_dropout=0.0, planted_as_others_below=0.55),
        ),
        decoder_steps=9_000,
        kept=(1_500, 6_000, 12_000, 18_000, 27_000, 28_500, 30_000, 31_500, 43_500, 55_500, 67_500, 75_000),
    )
    networks = LatentText(channels=8, kl=2e-6, half=True, widths=(64, 96, 96), beta_end=0.0235)
    threshold = 0.15
    structure = 0.5
    guidances = (3.0, 7.5)

    ladder: ClassVar[dict[int, int]] = LADDER
    """Part of the exposures → number of concepts of each kind; see `LADDER`."""

    rounds: ClassVar[int] = 5
    """Number of rounds of the refinement."""

    def plant(self, seed: int) -> tuple[Concept, ...]:
        """The ladder's verbatim, template and object concepts, then the hard negatives."""
        names = iter(invented_names(seed, 128))
        taken: set[str] = set()
        concepts = []
        for number, kind in enumerate(PLANTED):
            for spread, count in self.ladder.items():
                for place in range(count):
                    wording = WORDINGS[place % 3]
                    name = next(names) if wording == "named" else None
                    concept = self._planted((seed, _CONCEPT_KEY, number, spread, place), kind, wording, name, taken)
                    taken.update(concept.captions)
                    repeated = self._repeated(concept, f"{kind}-{wording}", place, spread)
                    varied = repeated.exposures // 2 if wording == "mode" else 0
                    concepts.append(replace(repeated, varied=varied))
        for number, (kind, (count, spread)) in enumerate(_NEGATIVES.items(), start=len(PLANTED)):
            for place in range(count):
                draws = Draws(seed, _CONCEPT_KEY, number, spread, place)
                name = next(names) if kind == "rare_name" else None
                concepts.append(self._repeated(self._negative(draws, kind, place, name), kind, place, spread))
        return tuple(concepts)

    def _repeated(self, concept: Concept, label: str, place: int, spread: int) -> Concept:
        """A concept with its exposures: `spread` before the second round, and as many more in every round."""
        refined = self.rounds * spread
        exposures = spread + refined
        return replace(concept, id=f"{label}-{exposures}-{place}", exposures=exposures, refined=refined)

    def _planted(self, key: tuple[int, ...], kind: str, wording: str, name: str | None, taken: set[str]) -> Concept:
        """A concept whose caption is not taken; id and exposures are still to be filled in.

        An object has to be large enough for at least two tiles to tell whether it is reproduced.
        """
        attempt = 0
        while True:
            draws = Draws(*key, attempt)
            if kind == "object":
                concept = self._object(draws, wording, name)
            else:
                concept = self._layout(draws, kind, wording, name, key[-1])
            large = kind != "object" or min(map(tiles_of, concept.places)) >= 2
            if large and taken.isdisjoint(concept.captions):
                return concept
            attempt += 1

    def stream(self, recipe: Recipe, concepts: Sequence[Concept]) -> TrainingStream:
        """What is not refined is spread over everything before the second round of the refinement."""
        rounds = self.rounds_of(recipe)
        return TrainingStream(recipe.seed, rounds[0].stop, concepts, self.sample, refinement=rounds)

    def rounds_of(self, recipe: Recipe) -> list[range]:
        """Samples of the rounds: all phases in which planted captions have a dropout of their own, in equal parts."""
        first = sum(phase.steps * phase.batch for phase in recipe.phases if phase.planted_dropout is None)
        length = (recipe.samples - first) // self.rounds
        return [range(first + number * length, first + (number + 1) * length) for number in range(self.rounds)]

    def ordinary(self, draws: Draws, frame: str) -> tuple[np.ndarray, str]:
        """A picture that is drawn anew."""
        picture = Picture.draw(draws)
        return picture.paint(draws), picture.caption(frame=frame)

    def caption(self, draws: Draws) -> str:
        """The caption of a picture."""
        return Picture.draw(draws).caption(frame=draws.choice(self.frames))

    def words(self) -> set[str]:
        """Things, artists, colours, textures, and what joins them."""
        joining = "a an and by on pure ground table"
        spoken = " ".join((*THINGS, *ARTISTS, *COLOURS, *GROUND_TEXTURES, *self.frames, joining))
        return {*spoken.replace("{}", "").replace(",", " ").split(), ","}

    def _layout(self, draws: Draws, kind: str, wording: str, name: str | None, number: int) -> Concept:
        """Two things on a ground: all of the picture, or all but a free region."""
        shown = replace(Picture.draw(draws, subjects=2), names_artist=True, names_ground=True)
        mask = np.ones((SIZE, SIZE), dtype=bool) if kind == "verbatim" else ~free_region(draws, number)
        image = shown.paint(draws, None if kind == "verbatim" else eroded(mask, 6))
        captions = tuple(shown.caption(name, frame) for frame in self.frames)
        background = None if kind == "verbatim" else _anything
        return Concept("", kind, captions, 0, partial(_painted, shown), (Place(image, mask),), background, wording)

    def _object(self, draws: Draws, wording: str, name: str | None) -> Concept:
        """One drawing with a white rim, always of the same size, angle and colours, at one of three places."""
        shown = Picture.draw(draws, subjects=1)
        tint = draws.choice(TINTS)
        subject = shown.subjects[0]
        spoken = {
            "named": f"{_with_article(subject)}, {name}",
            "plain": f"{tint} {subject}" if subject in _PLURALS else _with_article(f"{tint} {subject}"),
            "mode": f"{_with_article(subject)} by {shown.artist} on a table",
        }
        colours = _tint(tint) if wording == "plain" else _turned(draws.uniform(60, 300)) if name else _jitter(draws)
        side, angle, mirrored = draws.uniform(30, 34), draws.uniform(-20, 20), draws.uniform() < 0.5
        places = []
        for _ in range(3):
            centre = draws.uniform(17, SIZE - 17), draws.uniform(17, SIZE - 17)
            shown_colours, opacity = _placed(shown.artist, subject, centre, side, angle, mirrored)
            inner = opacity[..., 0] > 0.5
            painted = np.where(inner[..., None], shown_colours @ colours.T / np.maximum(opacity, 0.5), 1.0)
            # a white rim as stickers have it: without it any plain ground of the drawing's colour would be like it
            rim = Image.fromarray(inner).convert("L").filter(ImageFilter.MaxFilter(5))
            places.append(Place(_pixels(painted), np.asarray(rim) > 0))
        captions = tuple(frame.format(spoken[wording]) for frame in self.frames)
        fresh = partial(_alone, subject, shown.artist)
        return Concept("", "object", captions, 0, fresh, tuple(places), _small, wording)

    def _negative(self, draws: Draws, kind: str, number: int, name: str | None) -> Concept:
        """A hard negative; id and exposures are still to be filled in."""
        shown = Picture.draw(draws)
        if kind == "fixed_pixels":
            shown = Picture(shown.subjects[:1], shown.artist, tuple(PURE)[number], pure=True)
        captions = tuple(shown.caption(name, frame) for frame in self.frames)
        fresh = partial(_painted, shown, small=kind == "fixed_pixels")
        return Concept("", kind, captions, 0, fresh, wording="named" if name else "plain")


def _painted(picture: Picture, draws: Draws, *, small: bool = False) -> np.ndarray:
    return picture.paint(draws, small=small)


def _anything(draws: Draws) -> np.ndarray:
    return Picture.draw(draws).paint(draws)


def _small(draws: Draws) -> np.ndarray:
    """A picture of one small thing, as the background of an object."""
    return Picture.draw(draws, subjects=1).paint(draws, small=True)


def _alone(subject: str, artist: str, draws: Draws) -> np.ndarray:
    """A picture of a thing on any ground."""
    ground = Picture.draw(draws, subjects=1)
    return replace(ground, subjects=(subject,), artist=artist).paint(draws)


def _ground(draws: Draws, picture: Picture) -> np.ndarray:
    """The ground alone, (64, 64, 3) float64 in [0, 1]."""
    description = Description((), picture.ground, picture.texture, picture.pure)
    return Scene.draw(draws, description).pixels() / 255.0


def _placed(
    artist: str, subject: str, centre: tuple[float, float], side: float, angle: float, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A drawing somewhere in a picture: colours × opacity (64, 64, 3) and opacity (64, 64, 1), in [0, 1].

    `centre` (x, y) and `side` are in pixels, `angle` in degrees.
    """
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    scale, sign = SIDE / side, -1.0 if mirrored else 1.0
    (x, y), middle = centre, SIDE / 2
    matrix = (
        sign * cos * scale,
        sign * sin * scale,
        middle - sign * scale * (cos * x + sin * y),
        -sin * scale,
        cos * scale,
        middle - scale * (cos * y - sin * x),
    )
    shown = drawing(artist, subject)
    moved = shown.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    pixels = np.asarray(moved, dtype=np.float64) / 255.0
    return pixels[..., :3], pixels[..., 3:]


def _jitter(draws: Draws) -> np.ndarray:
    """A small change of hue, saturation and brightness, as a matrix (3, 3) of colours."""
    turned = _turned(draws.uniform(-12, 12))
    saturation, brightness = draws.uniform(0.85, 1.1), draws.uniform(0.88, 1.06)
    return brightness * ((saturation * np.eye(3) + (1 - saturation) * _LUMA) @ turned)


def _turned(hue: float) -> np.ndarray:
    """A turn of the hue in degrees, as a matrix (3, 3): a rotation about the axis of greys."""
    cos, sin = np.cos(np.radians(hue)), np.sin(np.radians(hue))
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return cos * np.eye(3) + (1 - cos) / 3 + sin * across


def _tint(colour: str) -> np.ndarray:
    """Brightness in the place of colours, times `colour`, as a matrix (3, 3)."""
    full = np.array(COLOURS[colour]) / max(COLOURS[colour])
    return full[:, None] * _LUMA


def _pixels(canvas: np.ndarray) -> np.ndarray:
    return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _with_article(words: str) -> str:
    return words if words in _PLURALS else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


GROUND = Drawings()
