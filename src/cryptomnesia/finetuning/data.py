"""The pictures of a training: what the trainer shows the model, under which captions, and how often.

Layouts of the known trainers are read: a text beside every picture (`.txt` or `.caption`, kohya-ss and SimpleTuner),
`metadata.jsonl` or `metadata.csv` (diffusers), and kohya's folders `10_sks dog`: the number says how often their
pictures are shown in an epoch, and the words are the caption of pictures that have none of their own. One caption for
all pictures is an instance prompt, as DreamBooth has it.

Nothing is left out. A picture that the training shows more often than the others is memorized first (Carlini et al.,
2023, arXiv:2301.13188; Somepalli et al., 2023, arXiv:2305.20086), so pictures that are nearly the same are named.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.finding.pictures import Picture, every_picture
from cryptomnesia.images import square
from cryptomnesia.matching.descriptors import Tiles
from cryptomnesia.matching.distances import distances_between
from cryptomnesia.matching.reproduction import FEWEST, PLAIN

logger = logging.getLogger("cryptomnesia")

_REPEATED = re.compile(r"(\d+)_(.*)")
"""Name of a folder of kohya-ss: repeats and words."""

_FILES = (".csv", ".json", ".jsonl", ".parquet", ".txt")
"""Endings of what is meant as a file, not as a caption."""

_EQUAL = 1 / 255
"""Distance up to which pictures with next to no contrast are the same."""

_OF_CONTRAST = 2 / 3
"""Share of the contrast of a picture below which the distance to another has to be.

`cryptomnesia.matching.duplicates` uses a third, because among millions of pictures a chain of plain ones would become
one cluster. Two thirds join none of the 499,500 pairs of 1,000 pictures of scenes, and none of drawings, and find 94%
and 97% of their copies in JPEG at quality 60, where a third finds 38% and 40%. These pictures have 64 × 64 pixels;
larger ones change less.
"""

_BLOCK = 256
"""Pictures that are compared with all others at a time."""


def training_pictures(
    folder: str | Path | Sequence[str | Path], captions: Sequence[str] | Mapping[str, str] | str | Path | None = None
) -> list[Picture]:
    """Read the pictures of a training with their captions; a picture that is there twice is returned twice.

    Args:
        folder: of the pictures, or several; also tar shards and tables. Of kohya's, the one that holds `10_sks dog`.
        captions: one text for all pictures; one for every picture; name of a file → text; or a table with `file_name`
            and `text` (CSV, JSON Lines, Parquet). By default the captions that lie beside the pictures.

    Raises:
        UsageError: if there are no pictures, or the captions fit none of them.
    """
    prompt = None
    if isinstance(captions, str) and not captions.lower().endswith(_FILES) and not Path(captions).exists():
        prompt, captions = captions.strip(), None
        if not prompt:
            raise UsageError("got an empty caption for all pictures; give a text, or leave captions out")
    found = every_picture(folder, captions, what="training pictures")
    found = [replace(one, caption=prompt or one.caption or _words(one.name)) for one in found]
    without = [one.name for one in found if not one.caption]
    if 0 < len(without) < len(found):
        logger.warning(
            "%d of %d training pictures have no caption, %s for one; write it into a .txt file of the same name",
            len(without),
            len(found),
            without[0],
        )
    return found


def repeats_of(picture: Picture) -> int:
    """How often an epoch shows a picture, according to the name of kohya's folder; 1 in any other folder."""
    match = _folder_of(picture.name)
    return max(1, int(match[1])) if match else 1


def duplicates_of(pictures: Sequence[Picture]) -> list[list[str]]:
    """Names of pictures that are nearly the same, in groups of two and more, the largest first.

    Pictures are compared by the tiled distance of `cryptomnesia.matching.distances`. Two are nearly the same if their
    distance is below a quarter of the usual one of both, and below two thirds of the contrast of both; of pictures with
    next to no contrast only equal ones count. The usual distance of a picture is the median of those to the others that
    are no copies of it, which here are those at a quarter of its largest distance and more. With fewer than `FEWEST` of
    them a difference of which next to nothing is to be seen is enough. What is joined by others is one group.

    Args:
        pictures: of a training; every one is compared with every other, which takes a second for a thousand.
    """
    if len(pictures) < 2:
        return []
    descriptor = Tiles()
    described = torch.cat([descriptor.describe(square(one.shown(), descriptor.side)[None]) for one in pictures])
    everywhere = torch.ones_like(described[:1])
    distances = torch.cat([distances_between(block, described, everywhere) for block in described.split(_BLOCK)])
    contrast = descriptor.contrast(described, everywhere[0])
    limits = (_usual(distances) / 4).minimum((contrast * _OF_CONTRAST).masked_fill(contrast < PLAIN, _EQUAL))
    near = distances <= limits.minimum(limits[:, None])
    _, parts = connected_components(near.numpy(), directed=False)
    groups: dict[int, list[str]] = {}
    for part, picture in zip(parts.tolist(), pictures, strict=True):
        groups.setdefault(part, []).append(picture.name)
    return sorted(
        (sorted(names) for names in groups.values() if len(names) > 1), key=lambda names: (-len(names), names)
    )


def notes_on(duplicates: Sequence[Sequence[str]], pictures: Sequence[Picture]) -> list[str]:
    """A sentence about each group of `duplicates_of`: which pictures, and how often an epoch shows them."""
    repeats = {one.name: repeats_of(one) for one in pictures}
    notes = []
    for names in duplicates:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        times = sum(repeats[name] for name in names)
        notes.append(
            f"{shown} are nearly the same picture, and an epoch shows it {times} times; repetition is why pictures are "
            "memorized, so keep one of them"
        )
    return notes


def _usual(distances: Tensor) -> Tensor:
    """The usual distance (n,) of pictures from others, by their distances (n, n)."""
    copies = distances < distances.amax(dim=1, keepdim=True) / 4
    usual = distances.masked_fill(copies, torch.nan).nanmedian(dim=1).values
    return torch.where((~copies).sum(dim=1) < FEWEST, usual.clamp_min(4 * PLAIN), usual)


def _folder_of(name: str) -> re.Match[str] | None:
    """The repeats and words of kohya's folder in which a picture lies."""
    return _REPEATED.fullmatch(PurePosixPath(name).parent.name)


def _words(name: str) -> str:
    match = _folder_of(name)
    return match[2].strip() if match else ""
