"""From how much noise a picture comes back, by the solver of the user's own pipeline.

From a noise level of the solver's run a picture is restored by diffusers' image-to-image pipeline of the same model,
with the same solver, steps and guidance. From pure noise it is the pipeline's own call. Whether what comes back is a
copy is judged twice, by pixels and by edges, against how near other pictures come to the picture.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.finding.measuring import LEAST
from cryptomnesia.matching.distances import counted, cut, distances_from
from cryptomnesia.matching.edges import correlation, edges
from cryptomnesia.pipelines.call import defaults_of, silent
from cryptomnesia.pipelines.origins.notices import quiet
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.generation import generate

SEEDS = 3
"""Calls from pure noise under a picture's caption."""

NOISY = 2.0
"""σ/α from which a restoration counts: from less noise everything comes back."""

FAINT = 50.0
"""σ/α from which next to nothing is left of the picture, so that what comes back is what comes back from pure noise."""

STARTS = 4
"""Noise levels from which a picture is restored, besides pure noise."""

SIDE = 64
"""Pixels of a side at which what comes back is compared."""

ACROSS = 4
"""Tiles in a row."""

FEWEST = 2
"""Tiles of which a mask has to hold half."""

PLAIN = 0.05
"""Standard deviation of the picture, of values in [0, 1], below which a mask holds next to nothing to see."""

HALF = 0.5
"""Share of the usual distance within which a picture is a copy by pixels (α of Carlini et al., 2023)."""


@dataclass(frozen=True)
class Start:
    """Where in a run a restoration begins.

    Attributes:
        strength: of the image-to-image call; 1 for pure noise.
        ratio: σ/α there, ∞ for pure noise.
        evaluations: of the network from there.
    """

    strength: float
    ratio: float
    evaluations: int


@dataclass(frozen=True)
class Restoring:
    """Restores pictures.

    Attributes:
        setup: the pipeline and the settings of its calls.
        seed: of the noise, the same for every picture.
    """

    setup: Setup
    seed: int = 0

    @cached_property
    def pipe(self) -> Any:
        """The image-to-image pipeline of the same model, None if diffusers has none that follows the same settings."""
        # a latent consistency model has other steps with every strength
        strengths = "strength" in inspect.signature(self.setup.pipe.scheduler.set_timesteps).parameters
        if strengths or not self.setup.complete:
            return None
        try:
            with quiet():
                # it imports every pipeline, and some of them say which packages are not installed
                from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image

                pipe = AutoPipelineForImage2Image.from_pipe(self.setup.pipe)
        # a class without such a pipeline, or one that lacks parts
        except (ValueError, TypeError):
            return None
        # some are given pictures as examples, and begin from pure noise
        return pipe if {"strength", *self.setup.sampling.options} <= defaults_of(pipe).keys() else None

    @cached_property
    def starts(self) -> list[Start]:
        """Where restorations begin, from the least noise on; pure noise comes last."""
        steps, found = self.setup.sampling.steps, []
        if self.pipe is not None and steps > 1:
            # a run of one picture shows the levels, which some solvers shift with the size
            (run,) = generate(self.setup, [""], [0], keep="all", decode=False)
            levels = [step.level for _, step in sorted(run.trajectory.steps.items())]
            ratios = [level.sigma / max(level.alpha, 1e-9) for level in levels]
            order = getattr(self.setup.pipe.scheduler, "order", 1)
            # the first step of a run would be pure noise
            last = math.log(ratios[order])
            shares = {number: share_of(steps - number, steps) for number in range(1, steps)}
            possible = {number: share for number, share in shares.items() if share is not None}
            for wanted in torch.linspace(math.log(LEAST), last, STARTS).exp().tolist() if possible else ():
                number = min(possible, key=lambda place: abs(math.log(ratios[order * place] / wanted)))
                found.append(Start(possible[number], ratios[order * number], len(ratios) - order * number))
        found = list({start.evaluations: start for start in found}.values())
        return [*found, Start(1.0, math.inf, steps)]

    def restored(
        self, pictures: Sequence[np.ndarray], captions: Sequence[str], start: Start, number: int = 0
    ) -> Tensor:
        """What comes back of pictures, (B, 3, H, W) in [0, 1] on the CPU.

        Args:
            pictures: (H, W, 3) uint8 each, of the size that the model makes.
            captions: one per picture.
            start: where to begin.
            number: of the noise.
        """
        seed = self.seed + number
        if start.strength == 1:
            (batch,) = generate(self.setup, captions, [seed] * len(captions), batch_size=len(captions))
            return batch.images
        arguments = self.setup.family.arguments(list(captions), self.setup.sampling)
        # some make pictures of their default size, whatever the size of those that they are given
        sizes = dict(zip(("height", "width"), pictures[0].shape[:2], strict=True))
        arguments = {name: value for name, value in {**arguments, **sizes}.items() if name in defaults_of(self.pipe)}
        with silent(self.pipe):
            made = self.pipe(
                **arguments,
                image=[Image.fromarray(picture) for picture in pictures],
                strength=start.strength,
                generator=[torch.Generator().manual_seed(seed) for _ in captions],
                output_type="pt",
            )
        return made.images.float().cpu()


@dataclass(frozen=True)
class Gallery:
    """Pictures at `SIDE` × `SIDE` pixels, with what is needed to compare them.

    Attributes:
        tiles: (n, T, P) in [0, 1].
        edges: (n, SIDE, SIDE).
    """

    tiles: Tensor
    edges: Tensor

    @classmethod
    def of(cls, pictures: np.ndarray) -> "Gallery":
        """The gallery of pictures (n, H, W, 3) uint8."""
        small = pictures
        if pictures.shape[1:3] != (SIDE, SIDE):
            images = (Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX) for one in pictures)
            small = np.stack([np.asarray(image) for image in images])
        return cls(_tiles(small) / 255, edges(small))

    @classmethod
    def joined(cls, galleries: "Sequence[Gallery]") -> "Gallery":
        """One gallery of the pictures of several."""
        return cls(torch.cat([one.tiles for one in galleries]), torch.cat([one.edges for one in galleries]))

    def rows(self, rows: Sequence[int]) -> "Gallery":
        """The gallery of some of the pictures."""
        return Gallery(self.tiles[list(rows)], self.edges[list(rows)])


@dataclass(frozen=True)
class Likeness:
    """How near pictures are to one picture.

    Attributes:
        picture: a gallery of the one.
        others: pictures that are no copies of it, at least one.
        mask: where they are compared, (h, w) bool at any size; everywhere if None.
    """

    picture: Gallery
    others: Gallery
    mask: np.ndarray | None = None

    def to(self, pictures: Gallery) -> np.ndarray:
        """How near n pictures are by pixels and by edges, (n, 2).

        The distance is relative to the median distance of the others, ≥ 0, and of the similarity of edges the largest
        one of the others is subtracted.
        """
        distances = self._distances(pictures) / self._usual
        return np.stack([distances, self._similarities(pictures) - self._most_similar], axis=1)

    @cached_property
    def _usual(self) -> float:
        return max(float(np.median(self._distances(self.others))), 1e-9)

    @cached_property
    def _most_similar(self) -> float:
        return float(self._similarities(self.others).max())

    @cached_property
    def _within(self) -> np.ndarray:
        whole = np.ones((SIDE, SIDE), dtype=bool)
        if self.mask is None:
            return whole
        mask = np.asarray(Image.fromarray(self.mask.astype(np.uint8) * 255).resize((SIDE, SIDE))) > 127
        # of few tiles, or of plain ground alone, a copy says nothing
        tiles = mask.reshape(ACROSS, SIDE // ACROSS, ACROSS, SIDE // ACROSS).mean(axis=(1, 3)) >= 0.5
        return mask if tiles.sum() >= FEWEST and self._contrast(mask) >= PLAIN else whole

    def _contrast(self, mask: np.ndarray) -> float:
        """The standard deviation from the mean colour within a mask (SIDE, SIDE) bool, of values in [0, 1]."""
        shares = _tiles(np.repeat(mask[None, :, :, None], 3, axis=3))[0].unflatten(1, (3, -1)) > 0
        colours = self.picture.tiles[0].unflatten(1, (3, -1))
        return float(torch.stack([colours[:, one][shares[:, one]] for one in range(3)]).var(dim=1).mean().sqrt())

    @cached_property
    def _weights(self) -> Tensor:
        return counted(_tiles(np.repeat(self._within[None, :, :, None], 3, axis=3)))[0]

    def _distances(self, pictures: Gallery) -> np.ndarray:
        return distances_from(self.picture.tiles[0], pictures.tiles, self._weights).numpy()

    def _similarities(self, pictures: Gallery) -> np.ndarray:
        return correlation(pictures.edges, self.picture.edges[0], self._within)


def tries(condition: str, start: Start) -> int:
    """How often a picture is restored from a level under a condition: under its `own` caption, with `none`, or another.

    From little noise everything comes back under any caption, and from very much noise the same as from pure noise. So
    there only its own caption is tried.
    """
    if math.isinf(start.ratio):
        return SEEDS if condition == "own" else 1
    return int(condition == "own" or NOISY <= start.ratio < FAINT)


def share_of(steps: int, every: int) -> float | None:
    """The `strength` of an image-to-image call of `every` steps that makes exactly so many of them.

    Some pipelines cut off fractions of the steps that are made, and others fractions of those that are left out. So the
    product has to be a whole number, and for some numbers of steps there is no such share, which gives None.
    """
    share = steps / every
    near = (share, math.nextafter(share, 0), math.nextafter(share, 1))
    return next((value for value in near if value * every == steps), None)


def _tiles(pictures: np.ndarray) -> Tensor:
    """Pictures (B, H, W, 3) as tiles (B, T, P), float32."""
    return cut(torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float(), ACROSS)
