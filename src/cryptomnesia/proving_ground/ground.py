"""What a proving ground is: pictures with captions, what is planted among them, and how a model is trained on them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np

from cryptomnesia.errors import UsageError
from cryptomnesia.proving_ground import BUNDLES
from cryptomnesia.proving_ground.concepts import Concept, TrainingStream
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.learning import Networks
from cryptomnesia.proving_ground.recipe import Recipe

PURPOSES = ("calibration", "selection", "evaluation")
"""What never-planted captions are drawn for; no caption serves two purposes."""

_CONTROL_KEY = 5

_LOOK_ALIKES = 11
"""First seed, counted from the ground's own, whose planted captions are the look-alikes."""

_RESERVED = 500
"""The number of captions of a purpose that later purposes do not use."""

_TRIES = 20_000
"""Captions in a row that are known already, after which a ground has no other."""


class Ground(ABC):
    """Pictures with captions, planted concepts, and a recipe. To add one, put a file with a subclass into `grounds`.

    All randomness comes from `Draws`, so that the same seed gives the same training on every machine.
    """

    name: str
    """What the command line calls it."""

    summary: str
    """One line that says what it is."""

    size: int = 64
    """Side of every picture in pixels."""

    frames: tuple[str, ...]
    """The wordings around every caption, planted or not, so that none of them is a sign of a planted image."""

    visible: tuple[tuple[str, ...], ...]
    """Groups of words that can be seen in a picture, for instance things and colours."""

    recipe: Recipe
    """How the bundled model was trained."""

    networks: Networks
    """What is trained."""

    recognizer_steps: int = 2_500
    """Steps in which a classifier learns to recognise the words of captions, to find the best guidance scale."""

    threshold: float
    """Tiled distance up to which a picture reproduces a planted one, fixed before any picture was generated."""

    structure: float | None = None
    """Similarity of edges from which a picture reproduces a planted one, fixed before any mitigation was run
    (benchmarks/structure.py); None where it is not known."""

    captioned: bool = True
    """Whether the model reads captions; if not, every caption is empty, and nothing selects what is generated."""

    guidances: tuple[float, ...]
    """Guidance scales at which the model is measured; the first is that of the bundled calibration."""

    steps: int = 50
    """Solver steps of the bundled calibration; PNDM makes one evaluation more."""

    with_early: bool = True
    """Whether the less-trained checkpoint is in the bundle, too."""

    detectors: tuple[str, ...] = ("settled-detail", "curvature-difference")
    """Detectors of the bundled calibration that need more than the norms, which are always recorded.

    Without captions, those are left out that need them.
    """

    localizers: tuple[str, ...] = ("settled-detail", "collapse", "curvature-difference")
    """Localizers whose maps of the reference images are in the bundled calibration; none without captions."""

    like: Any = None
    """Another ground with the same pictures and captions, whose classifier judges the models of both; None without."""

    origin: Any = None
    """The ground whose model is trained further; None for a training from nothing."""

    base: Path | None = None
    """Bundle whose model is trained further; None for a training from nothing."""

    solvers: tuple[str, ...] = ("PNDMScheduler", "DDIMScheduler")
    """Solvers of diffusers that `verify` tries, the model's own among them or not."""

    @abstractmethod
    def plant(self, seed: int) -> tuple[Concept, ...]:
        """All concepts that belong to `seed`: first the ladder, then the hard negatives."""

    @abstractmethod
    def ordinary(self, draws: Draws, frame: str) -> tuple[np.ndarray, str]:
        """A picture (size, size, 3) uint8 without a concept, and its caption in the wording `frame`."""

    @abstractmethod
    def caption(self, draws: Draws) -> str:
        """The caption of an ordinary picture, in one of the wordings; no picture is drawn."""

    @abstractmethod
    def words(self) -> set[str]:
        """Every word that an ordinary caption can contain."""

    def call(self, steps: int, guidance: float) -> dict[str, Any]:
        """Arguments of a call of the pipeline."""
        return {"num_inference_steps": steps, **({"guidance_scale": guidance} if self.captioned else {})}

    def sample(self, draws: Draws, concept: Concept | None, exposed: bool) -> tuple[np.ndarray, str]:
        """A training sample: a picture, and its caption in one of the wordings.

        Args:
            draws: the sample's own.
            concept: to which the caption belongs; None for an ordinary sample.
            exposed: whether the picture is the planted one.
        """
        frame = draws.integer(len(self.frames))
        if concept is None:
            return self.ordinary(draws, self.frames[frame])
        return (concept.exposure(draws) if exposed else concept.fresh(draws)), concept.captions[frame]

    def stream(self, recipe: Recipe, concepts: Sequence[Concept]) -> TrainingStream:
        """The samples of a training with `recipe`."""
        first = recipe.phases[0].steps * recipe.phases[0].batch
        refined = any(concept.refined for concept in concepts)
        refinement = [range(first, recipe.samples)] if refined else []
        samples = first if refined else recipe.samples
        return TrainingStream(recipe.seed, samples, concepts, self.sample, refinement=refinement)

    def settings(self) -> dict[str, Any]:
        """What a training depends on besides its recipe, by name."""
        return {}

    def on(self, base: Path) -> "Ground":
        """The same ground, whose training goes on from the model of another bundle.

        Raises:
            UsageError: if it is trained from nothing.
        """
        raise UsageError(f"{self.name} is trained from nothing, so it has no base; leave {base} out")

    def lexicon(self, concepts: Sequence[Concept]) -> set[str]:
        """Every word that a caption of the training can contain."""
        spoken = " ".join(caption for concept in concepts for caption in concept.captions)
        return self.words() | set(spoken.replace(",", " , ").split()) | {","}

    def top(self, concepts: Sequence[Concept]) -> int:
        """Exposures of the ladder's top rung."""
        return max(concept.exposures for concept in concepts if concept.planted)

    def control_captions(self, purpose: str, count: int, taken: Sequence[str], seed: int = 0) -> list[str]:
        """Different ordinary captions that belong to no concept, and to no earlier purpose; empty ones if all are.

        Args:
            purpose: one of `PURPOSES`.
            count: the number of captions.
            taken: captions of the concepts, which are left out.
            seed: of the proving ground.

        Raises:
            UsageError: if there is no such purpose, or there are not so many captions.
        """
        if purpose not in PURPOSES:
            raise UsageError(f"got the unknown purpose {purpose!r}; known are {', '.join(PURPOSES)}")
        if not self.captioned:
            return [""] * count
        if count > _RESERVED and purpose != PURPOSES[-1]:
            raise UsageError(f"got {count} captions for {purpose}, of which later purposes leave out {_RESERVED}")
        left_out = set(taken)
        for earlier in PURPOSES[: PURPOSES.index(purpose)]:
            left_out.update(self.control_captions(earlier, _RESERVED, taken, seed))
        captions: list[str] = []
        index = known = 0
        while len(captions) < count:
            caption = self.caption(Draws(seed, _CONTROL_KEY, PURPOSES.index(purpose), index))
            if caption not in left_out:
                left_out.add(caption)
                captions.append(caption)
                known = 0
            elif (known := known + 1) == _TRIES:
                raise UsageError(
                    f"the ground {self.name} has {len(captions)} captions for {purpose}, and {count} are needed; give "
                    "its captions more words, or its wordings more frames"
                )
            index += 1
        return captions

    def look_alike_captions(self, taken: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
        """Captions drawn as those of the planted concepts: those of other seeds, with which nothing was planted.

        Names are left out, as the model knows none of them. What is left of a caption with a name is like an ordinary
        one, and may also be the caption of an ordinary picture.

        Args:
            taken: captions of the concepts, which are left out.
            seed: of the proving ground.

        Returns:
            For every purpose one caption of each planted concept of another seed; no captions if the ground has none.
        """
        if not self.captioned:
            return {}
        left_out, found = set(taken), {}
        for number, purpose in enumerate(PURPOSES):
            planted = [concept for concept in self.plant(seed + _LOOK_ALIKES + number) if concept.planted]
            captions = [c.without_name[place % len(c.captions)] for place, c in enumerate(planted)]
            found[purpose] = [caption for caption in dict.fromkeys(captions) if caption not in left_out]
            left_out.update(captions)
        return found

    @property
    def bundle(self) -> Path:
        """The folder of the model that comes with the package."""
        return BUNDLES / self.name


@cache
def grounds() -> dict[str, Ground]:
    """Every proving ground by its name."""
    from cryptomnesia.proving_ground import grounds as folder

    modules = [import_module(f"{folder.__name__}.{module.name}") for module in iter_modules(folder.__path__)]
    found = [module.GROUND for module in modules]
    return {ground.name: ground for ground in sorted(found, key=lambda ground: ground.name)}


def ground_of(name: str) -> Ground:
    """The proving ground called `name`.

    Raises:
        UsageError: if there is none.
    """
    if name not in grounds():
        raise UsageError(f"no proving ground is called {name}; there are {', '.join(grounds())}")
    return grounds()[name]
