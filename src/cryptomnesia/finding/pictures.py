"""The pictures that are looked for, and the controls: files, folders, shards or pictures in memory, with captions."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cryptomnesia.decoding import opened, shown_as
from cryptomnesia.errors import UsageError
from cryptomnesia.images import png
from cryptomnesia.matching.sources import NOT_PICTURES, FileSource, Item, Span, unpacked
from cryptomnesia.matching.sources import captions as beside

logger = logging.getLogger("cryptomnesia")

CROPPED = 0.05
"""Share of a picture that may be cut off without a note."""


@dataclass(frozen=True)
class Picture:
    """A picture and its caption.

    A picture in a file is read whenever it is needed, so that many pictures take little memory.

    Attributes:
        name: of the file, or its place among the pictures.
        source: the file, a part of a shard, or the bytes of a file.
        caption: "" if there is none.
        digest: SHA-256 of the content, which is computed unless given.
    """

    name: str
    source: bytes | Path | Span
    caption: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        """Compute the digest."""
        if not self.digest:
            object.__setattr__(self, "digest", sha256(_read(self.source)).hexdigest())

    @property
    def content(self) -> bytes:
        """The content of the file.

        Raises:
            UsageError: if it cannot be read any more, or has changed.
        """
        if isinstance(self.source, bytes):
            return self.source
        try:
            content = _read(self.source)
        except (OSError, EOFError) as error:
            raise UsageError(f"cannot read {self.name} any more ({error}); put it back, and go on") from None
        if sha256(content).hexdigest() != self.digest:
            raise UsageError(f"{self.name} has changed since the search began; put it back, and go on")
        return content

    def carried(self) -> "Picture":
        """The picture with its content, for machines that do not see the file."""
        return replace(self, source=self.content)

    @property
    def identity(self) -> str:
        """What tells it from other pictures and captions, without either of them."""
        return sha256(f"{self.digest} {self.caption}".encode()).hexdigest()

    def shown(self) -> Image.Image:
        """The picture as a viewer shows it, as RGB."""
        with opened(self.content) as file:
            return shown_as(file).convert("RGB")

    def fitted(self, height: int, width: int) -> np.ndarray:
        """The middle of the picture at the size that the model makes, (height, width, 3) uint8."""
        return np.asarray(ImageOps.fit(self.shown(), (width, height), Image.Resampling.LANCZOS))

    def notes(self, height: int, width: int) -> list[str]:
        """What fitting it to the model's size changes, in words."""
        wide, high = self.shown().size
        kept = min(wide / width, high / height)
        left = kept**2 * width * height / (wide * high)
        found = []
        if left < 1 - CROPPED:
            found.append(f"only the middle {left:.0%} of the picture is looked at, at {width} × {height} pixels")
        if kept < 1 - CROPPED:
            found.append(f"the picture is smaller than the model's {width} × {height} pixels and was enlarged")
        return found


def read_pictures(
    given: Any, captions: Sequence[str] | Mapping[str, str] | str | Path | None = None, *, what: str = "pictures"
) -> list[Picture]:
    """Read pictures; each one once, whatever its name.

    Args:
        given: see `every_picture`.
        captions: see `every_picture`.
        what: what they are, for messages.

    Raises:
        UsageError: for no picture, a file that was given by itself and is none, or captions that fit no picture.
    """
    found = every_picture(given, captions, what=what)
    unique = distinct(found)
    if len(unique) < len(found):
        logger.warning("of %d %s some were given more than once; %d are left", len(found), what, len(unique))
    return unique


def every_picture(
    given: Any, captions: Sequence[str] | Mapping[str, str] | str | Path | None = None, *, what: str = "pictures"
) -> list[Picture]:
    """Read pictures; one that is there several times is returned as often.

    Args:
        given: a path of a picture, a folder, a tar shard or a table of pictures; a picture of PIL; a tensor (3, H, W)
            or array (H, W, 3) in [0, 1]; or a list of any of these.
        captions: one text for every picture that was given, name of a file → text, or a file that says so: CSV, JSON
            Lines or Parquet with `file_name` and `text`. By default those that lie beside the pictures.
        what: what they are, for messages.

    Raises:
        UsageError: for no picture, a file that was given by itself and is none, or captions that fit no picture.
    """
    parts = [given] if isinstance(given, str | Path | Image.Image | Tensor | np.ndarray) else list(given)
    found: list[Picture] = []
    for number, part in enumerate(parts):
        found += _of_path(Path(part)) if isinstance(part, str | Path) else [_of_memory(part, number)]
    if not found:
        raise UsageError(f"got no {what}; give at least one")
    return _captioned(found, captions, what)


def distinct(pictures: Sequence[Picture]) -> list[Picture]:
    """The first of all pictures with the same content."""
    first: dict[str, Picture] = {}
    for picture in pictures:
        first.setdefault(picture.digest, picture)
    return list(first.values())


def _of_path(path: Path) -> list[Picture]:
    """The pictures of a path.

    Raises:
        UsageError: if there is none.
    """
    if not path.exists():
        raise UsageError(f"no file {path}; give the path of a picture, or a folder of pictures")
    files = [path]
    if path.is_file():
        # captions lie beside a picture
        near = [path.with_suffix(suffix) for suffix in beside.SIDECARS]
        near += [path.parent / name for name in beside.METADATA]
        files += [file for file in near if file.is_file()]
    found = []
    for item in unpacked(FileSource(files).parts({})):
        problem, picture = item.problem, None
        if not problem:
            picture, problem = _of_item(item)
        if picture is not None:
            found.append(picture)
        elif path.is_file() and item.name == path.name:
            raise UsageError(f"{path} is no picture that can be read ({problem}); give another")
        elif not problem.startswith(NOT_PICTURES):
            logger.warning("skipped %s: %s", path / item.name, problem)
    if not found:
        raise UsageError(f"no pictures in {path}; give picture files, or a folder of pictures")
    return found


def _read(source: bytes | Path | Span) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _of_item(item: Item) -> tuple[Picture | None, str]:
    """The picture of an item, or why there is none."""
    content = item.content
    try:
        if isinstance(content, Image.Image):
            return Picture(item.name, png(shown_as(content).convert("RGB")), item.caption), ""
        picture = Picture(item.name, content, item.caption)
        picture.shown()
    except UnidentifiedImageError:
        return None, "no picture of a format that is read"
    # a broken file can make Pillow's decoders raise anything
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return picture, ""


def _of_memory(given: Any, number: int) -> Picture:
    """A picture in memory.

    Raises:
        UsageError: if it is none.
    """
    name = f"picture {number}"
    if isinstance(given, np.ndarray) and given.ndim == 3 and given.shape[2] == 3:
        array = given if given.dtype == np.uint8 else (given.clip(0, 1) * 255).round().astype(np.uint8)
        return Picture(name, png(array))
    if isinstance(given, Tensor) and given.dim() == 3 and given.shape[0] == 3 and given.is_floating_point():
        return Picture(name, png(given))
    if isinstance(given, Image.Image):
        return Picture(name, png(shown_as(given).convert("RGB")))
    raise UsageError(
        f"got {type(given).__name__} as {name}; give a path, a picture of PIL, or an array (H, W, 3) in [0, 1]"
    )


def _captioned(
    found: list[Picture], captions: Sequence[str] | Mapping[str, str] | str | Path | None, what: str
) -> list[Picture]:
    """The pictures with the captions that were given.

    Raises:
        UsageError: if these are too many or too few, or name none of the pictures.
    """
    if captions is None:
        return found
    if isinstance(captions, str | Path):
        path = Path(captions)
        try:
            captions = beside.of_metadata(path)
        except (KeyError, ValueError, OSError) as error:
            raise UsageError(
                f"cannot read the captions {path} ({error}); give a .csv, .jsonl or .parquet file with file_name and "
                "text"
            ) from None
    if not isinstance(captions, Mapping):
        if len(captions) != len(found):
            raise UsageError(f"got {len(captions)} captions for {len(found)} {what}; give one for each")
        return [replace(picture, caption=text.strip()) for picture, text in zip(found, captions, strict=True)]
    named = {Path(name).as_posix(): text.strip() for name, text in captions.items()}
    alone = Counter(Path(picture.name).name for picture in found)
    short = {Path(name).name: text for name, text in named.items() if alone[Path(name).name] == 1}
    named = {**short, **named}
    if not any({picture.name, Path(picture.name).name} & named.keys() for picture in found):
        raise UsageError(
            f"the captions name none of the {what}, {found[0].name} for one; give the names of the files in file_name"
        )
    found_for = {picture.name: short.get(Path(picture.name).name, picture.caption) for picture in found}
    return [replace(picture, caption=named.get(picture.name, found_for[picture.name])) for picture in found]
