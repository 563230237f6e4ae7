"""Pictures that Python hands over, one after the other."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.matching.sources.files import FileSource, check_source
from cryptomnesia.matching.sources.items import AGAIN, Item, Packed, Source, Unchanged, caption_in, clean, stamp_of

IN_MEMORY = "pictures from Python"
"""The source of an index whose pictures came from an iterable."""

_KEYS = ("image", "img", "picture", "jpg", "png", "jpeg", "webp")


class IterableSource:
    """An iterable of pictures, (name, picture), (name, picture, caption), (picture, caption), or mappings.

    A mapping has an `image`. A picture is a PIL image, a tensor (3, H, W) in [0, 1], an array (H, W, 3) uint8, the
    bytes of a file, or a path. A picture without a name is called by its path or its number.

    Attributes:
        root: what stands for a folder.
        total: number of items, as far as it is known yet.
        stamps: empty, because there are no shards.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        """Keep the iterable, which is gone through once."""
        self.root = IN_MEMORY
        self.total = len(given) if hasattr(given, "__len__") else 0  # pyright: ignore[reportArgumentType]
        self.stamps: dict[str, str] = {}
        self._given = given

    def parts(self, known: Mapping[str, str]) -> Iterator[Item | Packed | Unchanged]:
        """Yield the pictures of the iterable one after the other, with names and captions."""
        names = set[str]()
        for number, one in enumerate(self._given):
            self.total = max(self.total, number + 1)
            name, content, caption = _parts(one)
            if isinstance(content, str):
                content = Path(content)
            if isinstance(content, Path) and name is None:
                name = content.as_posix()
            item = _checked(f"{number:08}" if name is None else str(name), content, caption)
            if item.name in names:
                yield Item(f"{item.name} (again)", problem=AGAIN)
                continue
            if not item.problem:
                names.add(item.name)
            yield item


def source_of(images: str | Path | Iterable[Any], exclude: Path | None = None) -> Source:
    """The source that was given.

    Args:
        images: a folder, a file or a pattern; a list of folders, tar shards or tables; or an iterable of pictures.
        exclude: a folder that is left out, that of the index itself.

    Raises:
        UsageError: for a file or folder that does not exist, or something that is no source.
    """
    if isinstance(images, str | Path):
        return FileSource(check_source(images), exclude)
    if isinstance(images, list | tuple) and images and all(isinstance(one, str | Path) for one in images):
        return FileSource([path for one in images for path in check_source(one)], exclude)
    if not isinstance(images, Iterable):
        raise UsageError(f"got a {type(images).__name__} as images; give a folder, a file or an iterable of pictures")
    return IterableSource(images)


def _parts(one: Any) -> tuple[Any, Any, Any]:
    """Name, picture and caption, None for what is missing."""
    if isinstance(one, Mapping):
        keys = {str(key).lower(): key for key in one}
        picture = next((one[keys[key]] for key in _KEYS if key in keys), None)
        return one.get("__key__"), picture, caption_in(one)
    if isinstance(one, tuple) and one and isinstance(one[0], Image.Image | Tensor | np.ndarray):
        # a picture with its caption or label, as data sets of torchvision have it
        return None, one[0], one[1] if len(one) > 1 else None
    if isinstance(one, tuple) and len(one) in (2, 3):
        return (*one, None) if len(one) == 2 else one
    return None, one, None


def _checked(name: str, content: Any, caption: Any) -> Item:
    """An item, with a problem if the content is no picture."""
    text = clean(caption) if isinstance(caption, str) else ""
    if isinstance(content, dict) and isinstance(content.get("bytes"), bytes):
        content = content["bytes"]
    if isinstance(content, Path):
        if not content.is_file():
            return Item(name, problem="no such file")
        return Item(name, content, stamp_of(content), text)
    if isinstance(content, bytes | Image.Image):
        return Item(name, content, "", text)
    if isinstance(content, Tensor):
        return _from_tensor(name, content, text)
    if isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim in (2, 3):
        return Item(name, Image.fromarray(content), "", text)
    return Item(name, problem=f"no picture: got a {type(content).__name__}")


def _from_tensor(name: str, content: Tensor, caption: str) -> Item:
    from cryptomnesia.images import pixels

    if content.ndim != 3 or len(content) != 3 or not content.numel():
        return Item(name, problem=f"no picture: a tensor of shape {tuple(content.shape)}, not (3, H, W)")
    if not content.is_floating_point():
        content = content / 255
    if not (bool(content.amin() >= 0) and bool(content.amax() <= 1)):
        return Item(name, problem="no picture: a tensor with values outside of [0, 1]")
    return Item(name, Image.fromarray(pixels(content)), "", caption)
