"""Pictures as files, for tests of the index and of matches."""

import os

import numpy as np
import torch
from PIL import Image

from cryptomnesia.matching import ImageIndex, Tiles


def save(path, picture):
    """Write a picture (H, W, 3) in [0, 1], an array or a tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.asarray(picture) * 255).round().astype(np.uint8)).save(path)


def tensor(path):
    """Read a picture as a tensor (3, H, W) in [0, 1]."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def stopped_build(images, folder, after):
    def stop(done, total):
        if done >= after:
            os._exit(1)

    ImageIndex.build(images, folder, Tiles(), shard=5, progress=stop)
