"""How well a model restores a picture from noise.

A picture x_0 is noised to x_t = α·x_0 + σ·ε, and the network says what it takes the picture for, x̂_0(x_t). A model that
holds the picture is right where others can only guess. The denoising error at a place is the mean of (x̂_0 − x_0)² over
channels and noises. Every picture gets the same noises, so that pictures can be compared (common random numbers).

Under a picture's own caption the error tells whether caption and picture are held together, without a caption whether
the picture is held by itself, and under the caption of another picture whether the caption matters at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import over_channels, wide
from cryptomnesia.pipelines.call import defaults_of
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.encoding import check_encodable, encoded
from cryptomnesia.pipelines.families import family_of, pictures_of
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.schedule import Level, level_of_ratio
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.reading import conditioning, first_step

LEVELS = 8
"""Noise levels at which the error is measured."""

LEAST, MOST = 0.5, 100.0
"""σ/α of the lowest level, and of the highest one if the model is trained on as much noise."""

NOISES = 2
"""Noises at every level."""


def levels_of(setup: Setup, count: int = LEVELS, least: float = LEAST) -> list[Level]:
    """Noise levels, from the least noise on, evenly spread over log σ/α from `least` to `MOST`."""
    schedule = setup.family.schedule
    last = level_of_ratio(schedule, MOST)
    steps = torch.linspace(math.log(least), math.log(last.sigma / last.alpha), count, dtype=torch.float64)
    found = [level_of_ratio(schedule, math.exp(step)) for step in steps.tolist()]
    return list(dict.fromkeys(found))


def check_findable(setup: Setup) -> None:
    """Refuse a set-up whose model cannot be asked about pictures.

    Raises:
        UsageError: saying why.
    """
    # families whose pipelines may take pictures have pipelines that take none, and some that need none
    given = {name for name in setup.sampling.options if "image" in name or name in pictures_of(setup.pipe)}
    if given or getattr(setup.family, "needed", ()) or "strength" in defaults_of(setup.pipe):
        raise UsageError(
            f"a {type(setup.pipe).__name__} begins from a picture, or is given one; give the pipeline of the same "
            "model that begins from noise alone"
        )
    if getattr(setup.pipe, "safety_checker", None) is not None:
        raise UsageError(
            f"the {type(setup.pipe).__name__} has a safety checker, which may blacken what comes back; leave it out "
            "(--without safety_checker)"
        )
    setup.family.denoiser()
    check_encodable(setup.pipe)
    if setup.checkpoint is not None:
        from cryptomnesia.localizers.baseline import check_checkpoint

        check_checkpoint(setup.pipe, setup.checkpoint, decoded=False)


@dataclass(frozen=True)
class Measure:
    """Measures of a model and pictures.

    Attributes:
        setup: the pipeline and the settings of its calls, perhaps with a base model.
        seed: of the noises.
    """

    setup: Setup
    seed: int = 0

    @cached_property
    def levels(self) -> list[Level]:
        """The noise levels, from the least noise on."""
        return levels_of(self.setup)

    @cached_property
    def _empty(self) -> Any:
        """The first evaluation of a call without a caption."""
        return first_step(self.setup.pipe, [""], self.setup.sampling)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's pictures in pixels."""
        sampling, pipe = self.setup.sampling, self.setup.pipe
        if sampling.height is not None and sampling.width is not None:
            return sampling.height, sampling.width
        if getattr(pipe, "vae", None) is None:
            return tuple(self._empty.sample.shape[-2:])
        family: Any = self.setup.family
        return family.native()

    def encoded(self, pictures: np.ndarray) -> Tensor:
        """Pictures (B, H, W, 3) uint8 as the network sees them without noise, (B, …)."""
        values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return encoded(self.setup.pipe, values, self._empty.sample)

    def inputs(self, captions: Sequence[str], *, of: Any = None) -> Inputs:
        """The conditioning of captions, by the pipeline's text encoders or those of another one."""
        return conditioning(of or self.setup.pipe, captions, self.setup.sampling)

    def uncaptioned(self, count: int) -> Inputs:
        """The conditioning of the unconditional branch for `count` pictures; that of "" where there is no branch."""
        step = first_step(self.setup.pipe, [""] * count, self.setup.sampling)
        negative = self.setup.sampling.options.get("negative_prompt")
        return step.cond_inputs if step.uncond_inputs is None or negative else step.uncond_inputs

    @torch.no_grad()
    def errors(self, clean: Tensor, inputs: Inputs, *, denoiser: Denoiser | None = None) -> Tensor:
        """The denoising errors of pictures at every place and level, (B, levels, h, w) float32 on the CPU; may be NaN.

        Args:
            clean: pictures as `encoded` gives them.
            inputs: conditioning of the network.
            denoiser: another network than that of the pipeline.
        """
        denoiser = denoiser or self.setup.family.denoiser()
        found = []
        for number, level in enumerate(self.levels):
            total: Tensor | float = 0.0
            for noise in self.noises(number, clean):
                x0 = denoiser((level.alpha * clean + level.sigma * noise).to(clean.dtype), level, inputs).x0
                total = total + over_channels((wide(x0) - wide(clean)) ** 2, inputs)
            found.append(total)
        errors = torch.stack(found, dim=1).float().cpu() / NOISES  # type: ignore[arg-type]
        return errors * errors[0, 0].numel() / clean[0].numel()

    def noises(self, level: int, like: Tensor) -> list[Tensor]:
        """The noises of a level, the same for every picture, each shaped like one picture of `like`."""
        rng = torch.Generator().manual_seed(self.seed * 1_000 + level)
        return [torch.randn(like.shape[1:], generator=rng).to(like.device) for _ in range(NOISES)]

    def base_denoiser(self) -> Denoiser:
        """The network of the base model."""
        return family_of(self.setup.checkpoint).denoiser()
