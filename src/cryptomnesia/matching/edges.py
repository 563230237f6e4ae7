"""How similar the edges of two pictures are: a comparison that recolouring, inverting or fading does not fool.

The edges are the length of the gradient over all colours, of the picture blurred by one pixel. They are divided by
their root mean square in a window of nine pixels, so that a faded picture has the same edges as a strong one. The
similarity is the correlation of the edges over the pixels of a mask. It is 1 for a picture and its negative, and near 0
for two pictures that have nothing to do with each other.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

BLUR = 1.0
"""Standard deviation in pixels of the blur before the gradient."""

WINDOW = 9
"""Side in pixels of the window in which edges are normalised."""

FLAT = 0.02
"""Root mean square of the gradient, for colours in [0, 1], below which a window counts as flat."""


def edges(images: np.ndarray) -> Tensor:
    """The normalised edges of pictures (B, H, W, 3), (B, H, W)."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).double()
    x = x / 255 if images.dtype == np.uint8 else x
    reach = round(3 * BLUR)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * BLUR**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = pad(x, (reach,) * 4, mode="replicate")
    x = conv2d(conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    x = pad(x, (1,) * 4, mode="replicate")
    across = (x[:, :, 1:-1, 2:] - x[:, :, 1:-1, :-2]) / 2
    down = (x[:, :, 2:, 1:-1] - x[:, :, :-2, 1:-1]) / 2
    length = (across**2 + down**2).sum(dim=1, keepdim=True)
    local = avg_pool2d(pad(length, (WINDOW // 2,) * 4, mode="replicate"), WINDOW, stride=1)
    return (length.sqrt() / (local.sqrt() + FLAT))[:, 0]


def correlation(found: Tensor, planted: Tensor, mask: np.ndarray) -> np.ndarray:
    """The correlation of edges (B, H, W) with those of a planted picture (H, W) over a mask (H, W) bool, (B,)."""
    inside = torch.from_numpy(np.array(mask))
    one, other = found[:, inside], planted[inside]
    one, other = one - one.mean(dim=1, keepdim=True), other - other.mean()
    return (one @ other / (one.norm(dim=1) * other.norm()).clamp_min(1e-9)).numpy()
