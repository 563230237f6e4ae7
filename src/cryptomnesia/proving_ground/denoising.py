"""What each branch knows of the planted pictures: its denoising error on them, against look-alikes never planted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.schedule import level_at
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import Concept, Place
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.replication import planted_distance
from cryptomnesia.tracing.reading import conditioning

FILE = "exposures.npz"
"""Name of the file beside the manifest that holds one exposure of every top-rung concept, and look-alikes."""

_LOOK_ALIKES = 2
"""Other seeds whose top-rung concepts are the look-alikes."""

_LEVELS = range(50, 1000, 100)
"""Timesteps at which the denoising error is measured."""


class Exposures(NamedTuple):
    """Pictures (n, H, W, 3) uint8, masks (n, H, W) bool, captions, and which of them are planted, (n,) bool."""

    images: np.ndarray
    masks: np.ndarray
    captions: np.ndarray
    planted: np.ndarray

    @classmethod
    def draw(cls, ground: Ground, concepts: Sequence[Concept], seed: int) -> "Exposures":
        """One exposure of every top-rung concept, and of those of other seeds, whose captions the model never saw."""
        top = ground.top(concepts)
        rows = []
        for offset in range(_LOOK_ALIKES + 1):
            found = concepts if offset == 0 else ground.plant(seed + offset)
            for number, concept in enumerate([c for c in found if c.planted and c.exposures == top]):
                place = concept.places[0]
                draws = Draws(0, 7, number)
                image = place.image
                if concept.background is not None:
                    image = np.where(place.mask[..., None], place.image, concept.background(draws))
                # the model never saw the names of other seeds
                caption = (concept.without_name if offset else concept.captions)[0]
                rows.append((image, place.mask, caption, offset == 0))
        return cls(*(np.array(column) for column in zip(*rows, strict=True)))

    def save(self, folder: Path) -> None:
        """Write the file to `folder`."""
        np.savez_compressed(folder / FILE, **self._asdict())

    @classmethod
    def load(cls, folder: Path) -> "Exposures":
        """Read what `save` wrote.

        Raises:
            UsageError: if it is not there.
        """
        if not (folder / FILE).is_file():
            raise UsageError(f"no training pictures {folder / FILE}; make the bundle anew")
        with np.load(folder / FILE) as file:
            return cls(**{name: file[name] for name in cls._fields})


@torch.no_grad()
def ratios(pipe: Any, exposures: Exposures) -> dict[str, Any]:
    """Denoising error inside the mask on the top rung, divided by that on look-alikes, of both branches.

    The ratio is taken at every noise level and averaged, so that no level outweighs the others. Without captions there
    is one branch, the unconditional one.

    Returns:
        For each branch the mean ratio (`denoising_ratio_…`), where 95% of the means of as many look-alikes lie
        (`denoising_spread_…`), the share of the concepts whose ratio is below those of 97.5% of the look-alikes
        (`denoising_below_…`; .025 if nothing was memorized), and the mean ratio at every timestep
        (`denoising_by_timestep_…`).
    """
    result: dict[str, Any] = {}
    branches = ("conditional", "unconditional") if family_of(pipe).conditional else ("unconditional",)
    for branch in branches:
        captions = [str(caption) if branch == "conditional" else "" for caption in exposures.captions]
        errors = _errors(pipe, exposures, captions)
        by_level = errors / errors[~exposures.planted].mean(axis=0)
        relative = by_level.mean(axis=1)
        planted, others = relative[exposures.planted], relative[~exposures.planted]
        rng = np.random.default_rng(0)
        redrawn = [rng.choice(others, len(planted)).mean() for _ in range(2000)]
        result[f"denoising_ratio_{branch}"] = float(planted.mean())
        result[f"denoising_spread_{branch}"] = [float(q) for q in np.quantile(redrawn, [0.025, 0.975])]
        result[f"denoising_below_{branch}"] = float((planted < np.quantile(others, 0.025)).mean())
        means = by_level[exposures.planted].mean(axis=0).tolist()
        result[f"denoising_by_timestep_{branch}"] = dict(zip(map(str, _LEVELS), means, strict=True))
    return result


def _errors(pipe: Any, exposures: Exposures, captions: list[str], noises: int = 2) -> np.ndarray:
    """Mean square error of x̂_0 inside the mask of every picture at every noise level, (n, levels)."""
    masks = torch.from_numpy(exposures.masks).float()
    clean = encode(pipe, torch.from_numpy(exposures.images))
    weight = torch.nn.functional.avg_pool2d(masks[:, None], masks.shape[-1] // clean.shape[-1]).eq(1).float()
    if not weight.flatten(1).any(dim=1).all():
        raise ValueError("a mask covers no latent pixel whole, so there is no error inside it")
    parts = [slice(first, first + 64) for first in range(0, len(clean), 64)]
    sampling = Setup.of(pipe, {}).sampling
    inputs = [conditioning(pipe, captions[part], sampling) for part in parts]
    family = family_of(pipe)
    denoiser = family.denoiser()
    generator = torch.Generator().manual_seed(0)
    levels = []
    for t in _LEVELS:
        level = level_at(family.schedule, t)
        total = torch.zeros(len(clean))
        for _ in range(noises):
            # the same noise for every image, so that it cancels in the ratio
            noise = torch.randn(clean.shape[1:], generator=generator).expand_as(clean)
            noisy = level.alpha * clean + level.sigma * noise
            x0 = torch.cat([denoiser(x, level, given).x0 for x, given in zip(noisy.split(64), inputs, strict=True)])
            squared = (x0 - clean).square().mean(dim=1, keepdim=True) * weight
            total += squared.sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
        levels.append(total / noises)
    return torch.stack(levels, dim=1).numpy()


@torch.no_grad()
def decoded_distances(pipe: Any, planted: Sequence[Sequence[Place]]) -> np.ndarray:
    """The distances (n,) from n planted pictures to what the autoencoder alone, if there is one, makes of them.

    A model that remembers everything could do no better. Without an autoencoder they are 0.
    """
    if "vae" not in pipe.components:
        return np.zeros(len(planted))
    images = torch.from_numpy(np.stack([places[0].image for places in planted]))
    decoded = pipe.vae.decode(encode(pipe, images) / pipe.vae.config.scaling_factor).sample
    pictures = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return np.array([planted_distance(picture, places) for picture, places in zip(pictures, planted, strict=True)])


def encode(pipe: Any, images: Tensor) -> Tensor:
    """Uint8 images (B, H, W, 3) as the denoiser reads them: scaled latents, or pixels (B, 3, H, W) in [-1, 1]."""
    unit = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    if "vae" not in pipe.components:
        return unit
    return pipe.vae.encode(unit).latent_dist.mode() * pipe.vae.config.scaling_factor
