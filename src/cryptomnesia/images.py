"""Pictures: conversion between tensors, PIL and PNG, and sizes."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate


def pixels(image: Tensor) -> np.ndarray:
    """A (3, H, W) image in [0, 1] as (H, W, 3) uint8; NaN, the picture of a broken run, is black."""
    values = image.detach().float().nan_to_num(nan=0.0).clamp(0, 1)
    return (values.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)


def png(image: Tensor) -> bytes:
    """An image (3, H, W) in [0, 1] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels(image)).save(file, format="PNG")
    return file.getvalue()


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

    A camera's rotation is undone, and transparent parts become white.
    """
    if isinstance(picture, Tensor):
        picture = Image.fromarray(pixels(picture))
    # a large JPEG need not be decoded at its full size
    picture.draft("RGB", (2 * side, 2 * side))
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    box = (left, top, left + short, top + short)
    resample = Image.Resampling.BOX if short >= side else Image.Resampling.BILINEAR
    small = picture.resize((side, side), resample, box=box)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
