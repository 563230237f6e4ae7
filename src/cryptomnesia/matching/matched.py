"""The verb `match`: from pictures to the training images that they reproduce."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageOps
from torch import Tensor

from cryptomnesia.decoding import FORMATS
from cryptomnesia.errors import UsageError
from cryptomnesia.images import square
from cryptomnesia.matching.index import ImageIndex
from cryptomnesia.matching.reading import read_square
from cryptomnesia.matching.reproduction import Matches, check_size

Picture: TypeAlias = str | Path | Image.Image | Tensor
"""The path of a picture, a PIL image, or a tensor (3, H, W) in [0, 1]."""


def match(
    pictures: Picture | Sequence[Picture],
    index: ImageIndex | str | Path,
    *,
    masks: Tensor | Sequence[Tensor] | None = None,
    fpr: float = 0.01,
) -> Matches:
    """Find the nearest training image of every picture and decide whether the picture reproduces it.

    Args:
        pictures: a tensor (B, 3, H, W) in [0, 1], or a sequence of paths, PIL images or tensors (3, H, W) in [0, 1], of
            any sizes. One picture alone may be given without a sequence. Files and PIL images are read as a viewer
            shows them: rotated as EXIF says, on white, and in the smallest usual range that holds their values.
        index: an index of the training images, or the folder of one that was built with tiles. An index that was built
            with another descriptor, SSCD for instance, has to be opened with it: `ImageIndex(folder, SSCD(file))`.
        masks: a mask (h, w) per picture, bool or in [0, 1], true where the picture is to be compared, for instance
            `Mask.pixels` of a localizer's map. It may have any resolution, but needs the proportions of the picture.
            None compares whole pictures.
        fpr: share of ordinary pictures that may be found to reproduce a training image by chance, in (0, 1). The index
            has to hold at least 1.5/`fpr` pictures.

    Raises:
        UsageError: if there are no pictures, a picture or mask cannot be used, there is not one mask per picture, or
            the index cannot be opened or is too small.

    Example:
        for picture in match(["generated.png"], "index"):
            print(picture.path, picture.p_value, picture.reproduced)
    """
    given = _listed(pictures)
    if not given:
        raise UsageError("got no pictures; give paths, PIL images or tensors (3, H, W) in [0, 1]")
    regions = None if masks is None else _checked_masks(masks, len(given))
    opened = index if isinstance(index, ImageIndex) else ImageIndex(index)
    check_size(len(opened), fpr)
    squares = [_square(picture, number, opened.descriptor.side) for number, picture in enumerate(given, start=1)]
    for number, (mask, picture) in enumerate(zip(regions or [], given, strict=False), start=1):
        _check_proportions(mask, picture, number)
    return opened.match(squares, masks=regions, fpr=fpr)


def _listed(pictures: Picture | Sequence[Picture]) -> list[Any]:
    """Pictures as a list, one picture as a list of one."""
    if isinstance(pictures, str | Path | Image.Image) or (isinstance(pictures, Tensor) and pictures.ndim != 4):
        return [pictures]
    return list(pictures)


def _square(picture: Any, number: int, side: int) -> Tensor:
    """The middle square of a picture, (3, side, side) in [0, 1]; `number` is its name in messages."""
    if isinstance(picture, str | Path):
        if not Path(picture).is_file():
            raise UsageError(f"no file {picture}; give the path of a picture")
        result = read_square(Path(picture), side)
        if isinstance(result, str):
            raise UsageError(f"{picture} is no picture that can be read ({result}); give another")
        return result
    if isinstance(picture, Image.Image):
        # a JPEG file that is not decoded yet would be decoded at a smaller size, which the caller would see
        return square(picture.copy(), side)
    if not isinstance(picture, Tensor):
        raise UsageError(
            f"got a {type(picture).__name__} as picture {number}; give a path, a PIL image or a tensor (3, H, W)"
        )
    if picture.ndim != 3 or len(picture) != 3 or not picture.numel():
        raise UsageError(f"got picture {number} of shape {tuple(picture.shape)}; give (3, H, W)")
    if not picture.is_floating_point() or not _within_unit(picture):
        raise UsageError(
            f"got picture {number} with values from {picture.amin().item():g} to {picture.amax().item():g} "
            f"({picture.dtype}); give floating-point values in [0, 1]"
        )
    return square(picture, side)


def _checked_masks(masks: Tensor | Sequence[Tensor], pictures: int) -> list[Tensor]:
    """Masks of this number of pictures as a list."""
    given: list[Any] = [masks] if isinstance(masks, Tensor) and masks.ndim == 2 else list(masks)
    if len(given) != pictures:
        raise UsageError(f"got {len(given)} masks for {pictures} pictures; give a mask for every picture")
    for number, mask in enumerate(given, start=1):
        if not isinstance(mask, Tensor):
            raise UsageError(f"got a {type(mask).__name__} as mask {number}; give a tensor (h, w), as `Mask.pixels` is")
        if mask.ndim != 2 or not mask.numel():
            raise UsageError(f"got mask {number} of shape {tuple(mask.shape)}; give (h, w)")
        if not _within_unit(mask):
            raise UsageError(
                f"got mask {number} with values from {mask.amin().item():g} to {mask.amax().item():g}; "
                "give bool or values in [0, 1]"
            )
    return given


def _check_proportions(mask: Tensor, picture: Any, number: int) -> None:
    """Check that a mask has the proportions of its picture, up to one of the mask's pixels.

    Both are cropped to their middle square. With other proportions the mask would lie in another place.
    """
    height, width = _size(picture)
    rows, columns = mask.shape
    if abs(rows * width - columns * height) > max(height, width):
        raise UsageError(
            f"got mask {number} of {columns}×{rows} for a picture of {width}×{height}; give one with its proportions"
        )


def _size(picture: str | Path | Image.Image | Tensor) -> tuple[int, int]:
    """Height and width of a picture as it is shown."""
    if isinstance(picture, Tensor):
        return picture.shape[1], picture.shape[2]
    if not isinstance(picture, Image.Image):
        with Image.open(picture, formats=FORMATS) as opened:
            return _size(opened)
    width, height = ImageOps.exif_transpose(picture.copy()).size
    return height, width


def _within_unit(values: Tensor) -> bool:
    """Whether all values lie in [0, 1]; NaN does not."""
    return bool(values.amin() >= 0) and bool(values.amax() <= 1)
