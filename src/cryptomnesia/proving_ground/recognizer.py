"""Does a picture show what its caption says? A small classifier, trained on a ground's own pictures.

It decides which guidance scale is natural for a model: the smallest at which captions are recognised as well as at any
other. It plays no part in detection.
"""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.files import replacing
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import Ground
from cryptomnesia.proving_ground.learning import to_unit
from cryptomnesia.proving_ground.recipe import learning_rate

FILE = "recognizer.safetensors"
"""Name of the file beside the manifest."""

FEATURES = 96
"""Features of a picture, between which distributions of pictures are compared."""

CAPTIONS = 200
"""Captions whose pictures are judged at every guidance scale."""

_KEY = 9
_MOMENTS = 2_000
_BATCH, _RATE, _WARMUP = 64, 2e-3, 100


class Recognizer(nn.Module):
    """Pictures → which of the ground's words they show."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        """Untrained, for words in groups, for instance things and colours."""
        super().__init__()
        self.groups = tuple(map(tuple, groups))
        self.words = tuple(word for group in self.groups for word in group)
        widths = (3, 32, 64, FEATURES, FEATURES)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(2 * FEATURES, len(self.words))
        self.mean: Tensor
        self.covariance: Tensor
        self.register_buffer("mean", torch.zeros(FEATURES, dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(FEATURES, dtype=torch.float64))

    def features(self, pictures: Tensor) -> Tensor:
        """Means over the picture of the last layer's channels: pictures (B, 3, 64, 64) in [-1, 1] → (B, FEATURES)."""
        return self.trunk(pictures).mean(dim=(2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """Log odds of every word, (B, words)."""
        last = self.trunk(pictures)
        return self.head(torch.cat([last.mean(dim=(2, 3)), last.amax(dim=(2, 3))], dim=1))

    @torch.no_grad()
    def recognizes(self, pictures: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Whether pictures show every word of their captions that can be seen.

        Args:
            pictures: (B, 64, 64, 3) floats in [0, 1].
            captions: B texts.

        Returns:
            (B,) bool: no word that is mentioned has odds below 1.
        """
        mentioned = self.mentioned(captions)
        shown = torch.cat([self(part) for part in _tensor(pictures).split(256)]) > 0
        return (shown | ~mentioned).all(dim=1).numpy()

    def mentioned(self, captions: Sequence[str]) -> Tensor:
        """Which words captions mention, (B, words) bool."""
        spoken = [set(caption.replace(",", " ").split()) for caption in captions]
        return torch.tensor([[word in words for word in self.words] for words in spoken])

    def decided(self, mentioned: Tensor) -> Tensor:
        """Words of groups of which a caption mentions one, (B, words) bool.

        A caption without a colour does not say that the picture has none, so it decides nothing about colours.
        """
        groups = mentioned.split([len(group) for group in self.groups], dim=1)
        return torch.cat([group.any(dim=1, keepdim=True).expand_as(group) for group in groups], dim=1)

    @torch.no_grad()
    def frechet(self, pictures: np.ndarray) -> float:
        """Fréchet distance of the features of pictures from those of the ground's own: 0 if they are alike.

        Args:
            pictures: (B, 64, 64, 3) floats in [0, 1], more than there are features.
        """
        mean, covariance = self.moments(pictures)
        product = (covariance @ self.covariance).numpy()
        roots = np.linalg.eigvals(product).real.clip(0) ** 0.5
        squares = (mean - self.mean).square().sum() + (covariance + self.covariance).trace()
        return float(squares) - 2 * float(roots.sum())

    @torch.no_grad()
    def moments(self, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean (FEATURES) and covariance (FEATURES, FEATURES) of the features of pictures, float64."""
        features = torch.cat([self.features(part) for part in _tensor(pictures).split(256)]).double()
        return features.mean(dim=0), features.T.cov()

    def save(self, folder: Path) -> None:
        """Write the weights in half precision, with the words, to `folder`."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        weights = {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
        with replacing(folder / FILE) as unfinished:
            save_file(weights, unfinished, metadata={"groups": json.dumps(self.groups)})

    @classmethod
    def load(cls, folder: Path) -> "Recognizer":
        """Read what `save` wrote.

        Raises:
            UsageError: if it is not there.
        """
        if not (folder / FILE).is_file():
            raise UsageError(f"no recognizer {folder / FILE}; make the bundle anew")
        with safe_open(folder / FILE, framework="pt") as file:
            made = cls(json.loads(file.metadata()["groups"]))
        made.load_state_dict(load_file(folder / FILE))
        return made.eval()


def train_recognizer(
    ground: Ground, seed: int = 0, *, steps: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Recognizer:
    """Train on ordinary pictures of a ground, none of which is in the training of its model.

    Args:
        ground: whose pictures are drawn.
        seed: of pictures and weights.
        steps: batches of 64 pictures, as many as the ground says by default.
        progress: called with the number of steps done, and of all.
    """
    steps = steps or ground.recognizer_steps
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: Any = Recognizer(ground.visible)
        made.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(made.parameters(), lr=_RATE, weight_decay=1e-3)
        for step in range(steps):
            pictures, captions = zip(*ordinary(ground, seed, step * _BATCH, _BATCH), strict=True)
            images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
            words = made.mentioned(captions)
            with torch.autocast("cpu", torch.bfloat16):
                odds = made(to_unit(images))
            loss = nn.functional.binary_cross_entropy_with_logits(
                odds.float(), words.float(), made.decided(words).float()
            )
            for group in optimizer.param_groups:
                group["lr"] = _RATE * learning_rate(step, steps, _WARMUP, 1.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if progress is not None:
                progress(step + 1, steps)
    made.eval()
    pictures, _ = zip(*ordinary(ground, seed + 1, 0, _MOMENTS), strict=True)
    mean, covariance = made.moments(np.stack(pictures) / 255.0)
    made.mean.copy_(mean)
    made.covariance.copy_(covariance)
    return made


def ordinary(ground: Ground, seed: int, first: int, count: int) -> list[tuple[np.ndarray, str]]:
    """Ordinary pictures of a ground that are not in the training of its model, with their captions."""
    draws = [Draws(seed, _KEY, first + number) for number in range(count)]
    return [ground.ordinary(draw, draw.choice(ground.frames)) for draw in draws]


def _tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).float().permute(0, 3, 1, 2) * 2 - 1
