"""Pictures: conversion between tensors, PIL and PNG, and sizes."""

import io

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from cryptomnesia.decoding import squares


def pixels(image: Tensor) -> np.ndarray:
    """A (3, H, W) image in [0, 1] as (H, W, 3) uint8; NaN, the picture of a broken run, is black."""
    values = image.detach().float().nan_to_num(nan=0.0).clamp(0, 1)
    return (values.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)


def png(image: Tensor | np.ndarray | Image.Image) -> bytes:
    """An image as a PNG file: (3, H, W) in [0, 1], (H, W, 3) or (H, W) uint8, or one of PIL."""
    if isinstance(image, Tensor):
        image = pixels(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def heat(values: np.ndarray) -> bytes:
    """A map (h, w) as a PNG file: dark where it is at most 0, and brightest at its largest value."""
    scaled = np.clip(values, 0, None) / max(values.max(), 1e-9)
    return png((colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8))


def upsampled(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, h, w) at picture resolution by bilinear interpolation, (B, height, width)."""
    return interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]


def middle(values: Tensor) -> Tensor:
    """The middle square of values (..., h, w)."""
    height, width = values.shape[-2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return values[..., top : top + short, left : left + short]


def square(picture: Image.Image | Tensor, side: int) -> Tensor:
    """The middle square of a picture, PIL or (3, H, W) in [0, 1], scaled to (3, side, side) in [0, 1].

    The picture is read as a viewer shows it: a camera's rotation is undone, and transparent parts become white.
    """
    if isinstance(picture, Tensor):
        picture = Image.fromarray(pixels(picture))
    return unit(next(iter(squares(picture, side).values())))


def unit(array: np.ndarray) -> Tensor:
    """A picture (H, W, 3) uint8 as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255
