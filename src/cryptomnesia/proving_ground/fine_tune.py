"""Fine-tunes: the model of another ground is trained further on a few pictures, by LoRA or in full.

As in diffusers' scripts for text-to-image, the UNet is trained and the text encoder stays as it is. The pictures are in
the base ground's style, and the base never saw them. Half of their captions have an invented name, which the base's
tokenizer splits into several tokens. As many pictures of the same kind are controls: the manifest lists them with 0
exposures.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from cryptomnesia.errors import UsageError
from cryptomnesia.proving_ground.concepts import Concept, Epochs
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.further import Further, base_settings
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.latent import LatentText
from cryptomnesia.proving_ground.recipe import Phase, Recipe

BATCH = 8
"""Samples of a step."""

MOST = 500
"""The largest number of pictures: for so many, `_SEEDS` seeds of the base ground have enough."""

_SEEDS = 100
"""Seeds of the base ground that belong to one seed of the fine-tune: from 200 on, which no training of a base uses."""


@dataclass(frozen=True)
class Tuning:
    """The settings of a fine-tune.

    Attributes:
        rate: highest learning rate.
        exposures: of every picture.
        rank: of the LoRA; None for a fine-tune in full.
        pictures: number of pictures, 1 to `MOST`.
        named: share of the pictures whose caption has an invented name, in [0, 1].
    """

    rate: float
    exposures: int
    rank: int | None = None
    pictures: int = 24
    named: float = 0.5

    def __post_init__(self) -> None:
        """Reject numbers that cannot make a run."""
        if not (1 <= self.pictures <= MOST and 0 <= self.named <= 1):
            raise UsageError(
                f"got {self.pictures} pictures and a share of {self.named} with a name; give 1 to {MOST} and 0 to 1"
            )
        samples = self.pictures * self.exposures
        if samples < 1 or samples % BATCH:
            raise UsageError(
                f"got {self.pictures} pictures and {self.exposures} exposures; give numbers whose product is a "
                f"multiple of {BATCH}"
            )


class FineTune(Ground):
    """Pictures that the model of another ground is trained on further."""

    origin: Ground

    def __init__(self, origin: Ground, tuning: Tuning, base: Path | None = None) -> None:
        """Describe the fine-tune of the model of `origin`, by default of the one that comes with the package.

        Args:
            origin: the base ground.
            tuning: the settings.
            base: bundle of its model, by default the one that comes with the package.
        """
        networks = origin.networks
        assert isinstance(networks, LatentText)
        way = "in full" if tuning.rank is None else f"by LoRA of rank {tuning.rank}"
        self.origin, self.tuning, self.base = origin, tuning, base or origin.bundle
        self.name = f"{origin.name}-{'full' if tuning.rank is None else 'lora'}"
        self.summary = f"the model of {origin.name}, trained further on {tuning.pictures} pictures {way}; minutes"
        self.size, self.frames, self.visible = origin.size, origin.frames, origin.visible
        self.threshold, self.guidances = origin.threshold, origin.guidances
        steps = tuning.pictures * tuning.exposures // BATCH
        quarters = tuple(steps * quarter // 4 for quarter in range(4))
        # the moving average would remember the base
        self.recipe = Recipe((Phase(steps, BATCH, tuning.rate),), warmup=min(50, steps), average=0.0, kept=quarters)
        self.networks = Further(networks, self.base, tuning.rank)

    def plant(self, seed: int) -> tuple[Concept, ...]:
        """The pictures of the training, then as many controls that are not shown."""
        pictures = self.tuning.pictures
        drawn = chain.from_iterable(self.origin.plant(_SEEDS * (seed + 2) + other) for other in count())
        found = [*islice((c for c in drawn if c.kind == "verbatim" and c.wording == "named"), 2 * pictures)]
        concepts = []
        for exposures, chosen in ((self.tuning.exposures, found[::2]), (0, found[1::2])):
            for number, concept in enumerate(chosen):
                # evenly spread, so that fewer pictures are the first of more
                named = int((number + 1) * self.tuning.named) > int(number * self.tuning.named)
                wording = "named" if named else "plain"
                concepts.append(
                    replace(
                        concept,
                        id=f"tuned-{wording}-{exposures}-{number}",
                        captions=concept.captions if named else concept.without_name,
                        exposures=exposures,
                        wording=wording,
                        refined=0,
                    )
                )
        return tuple(concepts)

    def stream(self, recipe: Recipe, concepts: Sequence[Concept]) -> Epochs:
        """The pictures in epochs."""
        return Epochs(recipe.seed, concepts, self.sample)

    def ordinary(self, draws: Draws, frame: str) -> tuple[np.ndarray, str]:
        """A picture of the base ground."""
        return self.origin.ordinary(draws, frame)

    def caption(self, draws: Draws) -> str:
        """A caption of the base ground."""
        return self.origin.caption(draws)

    def words(self) -> set[str]:
        """The words of the base ground."""
        return self.origin.words()

    def settings(self) -> dict[str, Any]:
        """The settings, and the digest of the base's weights.

        Raises:
            UsageError: if there is no base, it is of another ground, or a package is missing.
        """
        if self.tuning.rank is not None and find_spec("peft") is None:
            raise UsageError("a LoRA needs the package peft, which is not installed; pip install peft")
        return {**base_settings(self.origin, self.base), **asdict(self.tuning)}

    def on(self, base: Path) -> "FineTune":
        """The same fine-tune of another base."""
        return FineTune(self.origin, self.tuning, base)


def tuned(ground: Ground, *, base: Path | None = None, **settings: Any) -> Ground:
    """A fine-tune with another base, and other settings.

    Args:
        ground: the fine-tune.
        base: folder of a bundle; None for the ground's own.
        **settings: attributes of `Tuning`; those that are None stay as they are.

    Raises:
        UsageError: for a setting that the ground does not have.
    """
    ground = ground if base is None else ground.on(base)
    given = {name: value for name, value in settings.items() if value is not None}
    if not given:
        return ground
    if not isinstance(ground, FineTune):
        raise UsageError(f"{ground.name} is no fine-tune, so it has no {next(iter(given))}; leave it out")
    if ground.tuning.rank is None and "rank" in given:
        raise UsageError(f"{ground.name} is no LoRA, so it has no rank; leave it out")
    return FineTune(ground.origin, replace(ground.tuning, **given), ground.base)
