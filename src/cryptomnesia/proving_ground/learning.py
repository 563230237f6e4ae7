"""What every training step needs, whatever is trained: randomness, losses, and the networks that belong to a ground."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.proving_ground.recipe import Phase

_MIDDLE = (0.1, 0.6)
"""The middle noise levels of SD's schedule, as shares of all timesteps."""


Inputs = dict[str, Tensor]
"""The tensors of a training step by name."""


@dataclass(frozen=True)
class Batch:
    """The share of a batch that one process works on, and its randomness, which depends on (seed, step) alone.

    Attributes:
        images: (b, 3, H, W) uint8.
        captions: b texts, of which `texts` drops and exchanges some.
        set_apart: (b,) bool, planted pictures that the phase treats in another way than all others.
        dropping: (b,) draws in [0, 1): a caption is dropped if its draw is below a share.
        dropout: that share for pictures that are not set apart.
        exchanged: (b,) bool, samples that give their captions to each other.
        size: samples of the whole batch.
        share: which of them these are.
        phase: of the training.
        generator: draws for the whole batch; every process draws the same numbers and takes its share.
    """

    images: Tensor
    captions: Sequence[str]
    set_apart: Tensor
    dropping: Tensor
    dropout: float
    exchanged: Tensor
    size: int
    share: slice
    phase: Phase
    generator: torch.Generator

    def times(self, count: int, middle: tuple[float, float] = _MIDDLE) -> Tensor:
        """Timesteps 0 … `count` − 1 of the samples, (b,) int64; `middle` bounds the middle noise levels, as shares."""
        t = torch.randint(count, (self.size,), generator=self.generator)
        if self.phase.middle:
            low, high = (int(share * count) for share in middle)
            others = torch.randint(low, high, (self.size,), generator=self.generator)
            t = torch.where(torch.rand(self.size, generator=self.generator) < self.phase.middle, others, t)
        return t[self.share]

    def texts(self, times: Tensor, count: int) -> list[str]:
        """What the networks read with the samples at timesteps `times` (b,) of `count`: some captions are dropped.

        Captions are exchanged among samples of little noise, and apart from them among samples of more. So a planted
        caption that is exchanged at little noise reaches no sample so noisy that only its caption says what to draw.
        """
        little = times < self.phase.planted_as_others_below * count
        kept = self.set_apart & ~little
        captions = exchanged(exchanged(self.captions, self.exchanged & little), self.exchanged & ~little & ~kept)
        dropped = self.dropping < torch.where(kept, self.phase.planted_dropout or 0.0, self.dropout)
        return ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]

    def noise(self, *shape: int) -> Tensor:
        """Normal noise of the samples, (b, *shape)."""
        return torch.randn((self.size, *shape), generator=self.generator)[self.share]


def exchanged(captions: Sequence[str], chosen: Tensor) -> list[str]:
    """Captions, of which the chosen (b,) went round: each of these samples has the caption of the next one."""
    places: list[int] = chosen.nonzero().flatten().tolist()
    source = dict(zip(places, places[1:] + places[:1], strict=True))
    return [captions[source.get(place, place)] for place in range(len(captions))]


class Learner(ABC):
    """Networks in training.

    Attributes:
        modules: what is trained, by name; of a module, only the weights that require a gradient are.
    """

    modules: dict[str, Any]

    @abstractmethod
    def inputs(self, batch: Batch) -> Inputs:
        """What the loss is computed from, in the memory of the CPU."""

    @abstractmethod
    def loss(self, inputs: Inputs) -> Tensor:
        """The mean loss of the samples, from inputs on the device of the networks.

        On a GPU it is recorded once and replayed, so it must be a function of these tensors alone, and may not look at
        a value on the CPU.
        """

    def to(self, device: torch.device) -> None:
        """Move all networks, those that are not trained as well."""
        for module in self.modules.values():
            module.to(device)

    @abstractmethod
    def pipeline(self, modules: dict[str, Any]) -> Any:
        """The stock pipeline with `modules` in the place of those that are trained."""

    def save(self, modules: dict[str, Any], folder: Path) -> None:
        """Write what `pipeline` makes to `folder`."""
        self.pipeline(modules).save_pretrained(folder)


class Networks(ABC):
    """Sizes of the networks of a ground, and the classes that train them."""

    autoencoder: bool = False
    """Whether the training begins with an autoencoder, on whose latents the denoiser works."""

    @abstractmethod
    def learner(self, folder: Path, words: set[str]) -> Learner:
        """Untrained networks.

        Args:
            folder: of the training, with the trained autoencoder if there is one.
            words: that captions can contain.
        """


def to_unit(images: Tensor) -> Tensor:
    """Uint8 pixels to floats in [-1, 1], in the layout of their device."""
    return (images.float() / 127.5 - 1.0).contiguous(memory_format=layout(images.device))


def layout(device: torch.device) -> torch.memory_format:
    """The faster layout of pictures and weights."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def half(device: torch.device, wanted: bool) -> torch.autocast:
    """Convolutions and products of matrices in bfloat16 on a CPU, where it is `wanted`.

    On a GPU networks this small are limited by the number of kernels, and those that convert add to it: on an H200 a
    step of the drawings took 10.4 ms in bfloat16 and 9.9 ms in TF32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and device.type == "cpu")
