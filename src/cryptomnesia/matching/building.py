"""Build an index: read the pictures of a folder, describe them, write shards."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.images import square
from cryptomnesia.matching import candidates
from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.matching.shards import finished, write_json, write_shard

FORMAT = 1
"""Version of the layout of an index."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of the files that are taken for pictures."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read. Pillow goes by the content of a file, and for other formats it may run other programs."""

Progress = Callable[[int, int], None]
"""Called with the number of pictures done and the number of all. With candidates every picture is done twice."""


def build(
    images: Path, folder: Path, descriptor: Descriptor, shard: int, workers: int | None, progress: Progress | None
) -> None:
    """Describe every picture under `images` that is not in the index yet; arguments as for `ImageIndex.build`.

    Raises:
        UsageError: if there are no pictures, or `folder` holds an index of another folder or descriptor.
        OSError: if the index cannot be written.
    """
    if (folder / "index.json").exists():
        about = read_about(folder)
        check_descriptor(folder, about, descriptor)
        if about["source"] != str(images.resolve()):
            raise UsageError(f"{folder} is an index of {about['source']}, not of {images}; give another folder")
    else:
        (folder / candidates.FILE).unlink(missing_ok=True)
    # a build that was killed may have left half a file
    for leftover in folder.glob("*.unfinished"):
        leftover.unlink()
    about = {"format": FORMAT, "descriptor": descriptor.name, "source": str(images.resolve()), "complete": False}
    files, skipped = pictures_of(images)
    indexed = {path for names in finished(folder) for path in json.loads(names.read_text(encoding="utf-8"))}
    if not files:
        raise UsageError(f"no pictures in {images}; known are {', '.join(sorted(SUFFIXES))}")
    if gone := indexed - set(files):
        raise UsageError(
            f"{len(gone)} pictures of the index are gone from {images}, {min(gone)} for one; build it anew"
        )
    write_json(folder / "index.json", {**about, "skipped": skipped})
    remaining = [path for path in files if path not in indexed]
    done = len(files) - len(remaining)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        number = max((int(names.stem) for names in finished(folder)), default=-1)
        for paths in _portions(remaining, shard):
            described, described_paths = [], []
            for portion in _portions(paths, 256):
                results = pool.map(lambda path: read_square(images / path, descriptor.side), portion)
                pairs = list(zip(portion, results, strict=True))
                pictures = {path: result for path, result in pairs if isinstance(result, Tensor)}
                skipped |= {path: result for path, result in pairs if isinstance(result, str)}
                if pictures:
                    described.append(descriptor.describe(torch.stack(list(pictures.values()))).half().numpy())
                    described_paths += pictures
                done += len(portion)
                if progress is not None:
                    progress(done, len(files))
            if described:
                number += 1
                write_shard(folder / f"{number:05}", np.concatenate(described), described_paths)
    if not any(finished(folder)):
        raise UsageError(f"none of {len(files)} pictures in {images} can be read, {min(skipped)} for one; give others")
    write_json(folder / "index.json", {**about, "skipped": skipped, "complete": True})


def check_folder(images: Path) -> None:
    """Check that the folder of the training images exists.

    Raises:
        UsageError: if it does not.
    """
    if not images.is_dir():
        raise UsageError(f"no folder {images}; give the folder of the training images")


def as_text(path: str) -> str:
    """A path as text for reports. Bytes of a file name that are no text are replaced."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def pictures_of(images: Path) -> tuple[list[str], dict[str, str]]:
    """All pictures of a folder: their relative paths, sorted, and path → reason for those that are left out."""
    root = images.resolve()
    files, skipped = [], {}
    for where, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(where, name)
            relative = path.relative_to(root).as_posix()
            # realpath accepts links that lead in a circle, resolve does not
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                skipped[relative] = "a link that leads out of the folder"
            elif path.suffix.lower() in SUFFIXES:
                if path.is_file():
                    files.append(relative)
                elif path.is_symlink() and not path.is_dir():
                    skipped[relative] = "a link that leads nowhere"
    return sorted(files), skipped


def read_square(path: Path, side: int) -> Tensor | str:
    """The middle square of a picture file, (3, side, side) in [0, 1], or the reason why it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return square(picture, side)
    # a broken file can make Pillow's decoders raise any exception
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def read_about(folder: Path) -> dict[str, Any]:
    """Read what an index says about itself: format, descriptor, source, skipped pictures, and whether it is complete.

    Raises:
        UsageError: if there is no index, or it has the format of another version.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        version, _ = about["format"], about["descriptor"]
    except FileNotFoundError:
        raise UsageError(f"no index in {folder}; make one with `cryptomnesia index build`") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UsageError(f"{folder} is not an index ({error}); make one with `cryptomnesia index build`") from None
    if version != FORMAT:
        raise UsageError(f"{folder} has index format {version}, this version reads {FORMAT}; build it anew")
    return about


def check_descriptor(folder: Path, about: dict[str, Any], descriptor: Descriptor) -> None:
    """Check that the index in `folder`, which says `about` itself, was built with this descriptor.

    Raises:
        UsageError: if it was built with another one.
    """
    if about["descriptor"] != descriptor.name:
        raise UsageError(
            f"{folder} was built with the descriptor {about['descriptor']}, asked for was {descriptor.name}; "
            "build another"
        )


def _portions(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
