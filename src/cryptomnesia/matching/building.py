"""Pictures of a folder into the shards of an index."""

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
from cryptomnesia.matching import candidates
from cryptomnesia.matching.descriptors import Descriptor, square
from cryptomnesia.matching.shards import finished, write_json, write_shard

FORMAT = 1
"""Version of the layout of an index."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""What counts as a picture."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is in such files. Pillow goes by their content, and knows formats that make it run other programs."""

Progress = Callable[[int, int], None]
"""Called with the number of pictures done and their total; of an index with candidates all are done twice."""


def build(
    images: Path, folder: Path, descriptor: Descriptor, shard: int, workers: int | None, progress: Progress | None
) -> None:
    """Describe every picture under `images` that the index in `folder` does not know; arguments as `ImageIndex.build`.

    Raises:
        UsageError: for a folder without pictures, or an index of something else.
        OSError: if it cannot be written.
    """
    if (folder / "index.json").exists():
        about = read_about(folder, descriptor)
        if about["source"] != str(images.resolve()):
            raise UsageError(f"{folder} is an index of {about['source']}, not of {images}; give another folder")
    else:
        (folder / candidates.FILE).unlink(missing_ok=True)
    about = {"format": FORMAT, "descriptor": descriptor.name, "source": str(images.resolve()), "complete": False}
    files, skipped = pictures_of(images)
    known = {path for names in finished(folder) for path in json.loads(names.read_text(encoding="utf-8"))}
    if not files:
        raise UsageError(f"no pictures in {images}; known are {', '.join(sorted(SUFFIXES))}")
    if gone := known - set(files):
        raise UsageError(
            f"{len(gone)} pictures of the index are gone from {images}, {min(gone)} for one; build it anew"
        )
    write_json(folder / "index.json", {**about, "skipped": skipped})
    left = [path for path in files if path not in known]
    done = len(files) - len(left)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        number = max((int(names.stem) for names in finished(folder)), default=-1)
        for paths in _portions(left, shard):
            described, kept = [], []
            for some in _portions(paths, 256):
                found = list(pool.map(lambda path: _read(images / path, descriptor.side), some))
                good = [picture for picture in found if isinstance(picture, Tensor)]
                kept += [path for path, picture in zip(some, found, strict=True) if isinstance(picture, Tensor)]
                skipped |= {path: why for path, why in zip(some, found, strict=True) if isinstance(why, str)}
                if good:
                    described.append(descriptor.describe(torch.stack(good)).half().numpy())
                done += len(some)
                if progress is not None:
                    progress(done, len(files))
            if kept:
                number += 1
                write_shard(folder / f"{number:05}", np.concatenate(described), kept)
    if not any(finished(folder)):
        raise UsageError(f"none of {len(files)} pictures in {images} can be read, {min(skipped)} for one; give others")
    write_json(folder / "index.json", {**about, "skipped": skipped, "complete": True})


def check_folder(images: Path) -> None:
    """See that there is one.

    Raises:
        UsageError: otherwise.
    """
    if not images.is_dir():
        raise UsageError(f"no folder {images}; give the folder of the training images")


def as_text(path: str) -> str:
    """A path for reports; not every file name is text."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def pictures_of(images: Path) -> tuple[list[str], dict[str, str]]:
    """The paths of all pictures in a folder, sorted, and of those left out with the reason."""
    root = images.resolve()
    files, skipped = [], {}
    for where, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(where, name)
            relative = path.relative_to(root).as_posix()
            # unlike resolve, realpath bears links that lead in a circle
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                skipped[relative] = "a link that leads out of the folder"
            elif path.suffix.lower() in SUFFIXES:
                if path.is_file():
                    files.append(relative)
                elif path.is_symlink() and not path.is_dir():
                    skipped[relative] = "a link that leads nowhere"
    return sorted(files), skipped


def _read(path: Path, side: int) -> Tensor | str:
    """The square picture, or why there is none."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return square(picture, side)
    # Pillow's decoders raise whatever a broken file leads them to
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _portions(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def read_about(folder: Path, descriptor: Descriptor) -> dict[str, Any]:
    """What an index says of itself.

    Raises:
        UsageError: if there is none, or it is of another version or descriptor.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        version, name = about["format"], about["descriptor"]
    except FileNotFoundError:
        raise UsageError(f"no index in {folder}; make one with `cryptomnesia index build`") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UsageError(f"{folder} is not an index ({error}); make one with `cryptomnesia index build`") from None
    if version != FORMAT:
        raise UsageError(f"{folder} has index format {version}, this version reads {FORMAT}; build it anew")
    if name != descriptor.name:
        raise UsageError(
            f"{folder} was built with the descriptor {name}, asked for was {descriptor.name}; build another"
        )
    return about
