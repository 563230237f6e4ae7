"""A small classifier that says which of a caption's attributes a picture shows.

Attributes are the kinds of object, their colours, and the colour of the ground: 9 + 12 + 12. The classifier is trained
on fresh scenes of the generator and judged on others. Its recall there is the most that a generated picture can be
expected to reach.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.scenes import COLOURS, SHAPES, Description, Scene

_SCENE_KEY = 9
SIZE = len(SHAPES) + 2 * len(COLOURS)


def attributes(caption: str) -> np.ndarray:
    """What a caption says, (33,) bool."""
    items, _, ground = caption.replace(",", "").split(" ground")[0].rpartition(" ")
    words = items.split()
    return np.array(
        [shape in words for shape in SHAPES]
        + [colour in words for colour in COLOURS]
        + [colour == ground for colour in COLOURS]
    )


def drawn(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Scenes number `first` …: images (count, 3, 64, 64) in [0, 1] and attributes (count, 33) float."""
    images, labels = [], []
    for index in range(first, first + count):
        draws = Draws(0, _SCENE_KEY, index)
        scene = Scene.draw(draws, Description.draw(draws))
        images.append(torch.from_numpy(scene.pixels()))
        labels.append(torch.from_numpy(attributes(scene.description.caption())))
    return torch.stack(images).permute(0, 3, 1, 2).float() / 255, torch.stack(labels).float()


class Classifier(nn.Module):
    """Five strided convolutions and a linear layer over their mean and maximum."""

    def __init__(self) -> None:
        """Random weights, always the same."""
        super().__init__()
        torch.manual_seed(0)
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.GroupNorm(8, after), nn.SiLU()]
        layers += [nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(256, SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 33) of images (B, 3, 64, 64)."""
        seen = self.body(images)
        return self.head(torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1))


def trained(steps: int = 1500, batch: int = 64) -> Classifier:
    """A classifier trained on `steps`·`batch` scenes."""
    network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        images, labels = drawn(step * batch, batch)
        loss = nn.functional.binary_cross_entropy_with_logits(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def shown(network: Classifier, images: Tensor, labels: Tensor) -> np.ndarray:
    """Share of the attributes `labels` (B, 33) that the classifier finds in the images (B, 3, 64, 64), (B,)."""
    detected = (network(images) > 0).float()
    return ((detected * labels).sum(dim=1) / labels.sum(dim=1)).numpy()


def ceiling(network: Classifier, count: int = 1000) -> float:
    """The classifier's recall on scenes that it never saw."""
    images, labels = drawn(10_000_000, count)
    return float(shown(network, images, labels).mean())
