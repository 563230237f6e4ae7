"""Add canaries to a training set, and take them out again.

The manifest is written first, as `unfinished`, and once more when everything is there. So a call that was stopped goes
on when it is repeated, and what it has added can be taken out at any time. Files of the trainer stay as they are, but
for rows at the end of metadata.jsonl or metadata.csv, which name the canaries; the file is replaced as a whole.
"""

import hashlib
import io
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from cryptomnesia.errors import UsageError
from cryptomnesia.files import write_whole
from cryptomnesia.finetuning.canaries import drawing
from cryptomnesia.finetuning.canaries.manifest import FILE, Canary, Layout, Manifest
from cryptomnesia.finetuning.canaries.rows import Rows
from cryptomnesia.matching.sources.items import PICTURE_SUFFIXES
from cryptomnesia.settings import MakeCanariesSettings

logger = logging.getLogger("cryptomnesia")

MANY = 0.1
"""Share of the pictures of an epoch from which on a warning says that canaries change what is trained."""

_REPEATED = re.compile(r"(\d+)_")
"""How the name of a folder begins whose pictures kohya's scripts repeat."""


def make_canaries(
    data: str | Path,
    *,
    output: str | Path | None = None,
    repetitions: Sequence[int] | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Manifest:
    """Add canaries to a training set, each so often as its repetitions say.

    Where captions are read from and pictures are repeated by folders follows the training set. Copies of a canary are
    files with the same content, so a training that drops duplicates sees each canary once.

    Args:
        data: folder of the training set, in which its pictures or kohya's folders N_NAME lie.
        output: folder that gets the canaries, and the manifest `canaries.json`; by default the training set itself.
        repetitions: how often an epoch shows a canary, one number for every group; by default 1, 4, 16 and 64.
        progress: called with (what, done, in all).
        **settings: `each`, `reserve`, `seed`, `size` and `layout`, as fields of
            `cryptomnesia.settings.MakeCanariesSettings`.

    Returns:
        What was added.

    Raises:
        UsageError: for a folder without pictures, one that has canaries already, or metadata that no row can be added
            to.

    Example:
        make_canaries("my-pictures", repetitions=[1, 8, 64])
    """
    if repetitions is not None and not isinstance(repetitions, str):
        repetitions = ",".join(map(str, repetitions))
    given = MakeCanariesSettings.resolve({**settings, "data": data, "repetitions": repetitions}, environment={})
    source = Path(data)
    folder = source if output is None else Path(output)
    before = Manifest.read(folder) if (folder / FILE).exists() else None
    if before is not None and before.state != "unfinished":
        raise UsageError(
            f"{folder} has canaries already ({FILE}, {before.state}); measure them, or move that file away to add "
            "others"
        )
    seed = given.seed if before is None or given.seed is not None else before.seed
    planned, rows = _planned(given, source, folder, secrets.randbits(62) if seed is None else seed)
    if before is None:
        taken = [file for file in planned.files if (folder / file).exists()]
        if taken:
            raise UsageError(f"{folder / taken[0]} is there already; give another seed, or move the file away")
        folder.mkdir(parents=True, exist_ok=True)
        planned.write(folder, "unfinished")
    # its own pictures are not the trainer's
    elif replace(planned, pictures=before.pictures) != before:
        raise UsageError(
            f"{folder} has canaries that were not finished, with other settings; repeat the command that began them, "
            "or take them out with `cryptomnesia canaries remove`"
        )
    else:
        planned = before
    if planned.share > MANY:
        logger.warning(
            "canaries are %.0f%% of the pictures of an epoch (%d of %d), which changes what is trained; give fewer "
            "repetitions, or a smaller each",
            100 * planned.share,
            planned.shown,
            planned.shown + planned.pictures,
        )
    for done, canary in enumerate(planned.canaries):
        if progress is not None:
            progress("canaries", done, len(planned.canaries))
        _write(canary, canary.drawn(planned.seed, planned.size), folder)
    if rows is not None:
        rows.add(_named(planned))
    return planned.write(folder, "complete")


def remove_canaries(folder: str | Path) -> Manifest:
    """Take the canaries of a folder out again; the manifest stays, because measuring needs it, if they were finished.

    A file with another content than was written stays, and a warning names it.

    Args:
        folder: with `canaries.json`.

    Returns:
        What was taken out.

    Raises:
        UsageError: if the folder has no canaries.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; give the one that has {FILE}")
    manifest = Manifest.read(folder)
    # a row without its file would stop the training, a file without a row does not
    if manifest.metadata and (folder / manifest.metadata).exists():
        Rows.of(folder / manifest.metadata).remove(_named(manifest))
    left = [file for canary in manifest.canaries for file in canary.files if not _removed(folder / file, canary)]
    for parent in {(folder / file).parent for file in manifest.files} - {folder}:
        with suppress(OSError):
            parent.rmdir()
    if left:
        logger.warning("%d files were changed, and stay; the first is %s", len(left), folder / left[0])
    if manifest.state == "unfinished":
        (folder / FILE).unlink()
        return manifest
    return manifest.write(folder, "removed")


def _planned(settings: MakeCanariesSettings, source: Path, folder: Path, seed: int) -> tuple[Manifest, Rows | None]:
    """What is to be added, and the rows of the metadata file that are to name it."""
    if not source.is_dir():
        raise UsageError(f"no folder {source}; give the folder of the training set")
    mark = f"canary-{hashlib.sha256(f'{seed} mark'.encode()).hexdigest()[:8]}"
    found = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    files = [path for path in found if not path.name.startswith(mark)]
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise UsageError(f"no pictures in {source}; give the folder of the training set")
    layout = _layout_of(source, pictures) if settings.layout == "auto" else settings.layout
    rows = Rows.found(source, folder) if layout == "metadata" else None
    suffixes = {path.suffix.lower() for path in files}
    text = ".caption" if ".caption" in suffixes and ".txt" not in suffixes else ".txt"
    canaries = []
    for repetitions in settings.numbers:
        for _ in range(settings.each):
            number = len(canaries)
            if layout == "kohya":
                stems = [f"{repetitions}_{mark}/{mark}-{number:03}"]
            else:
                stems = [f"{mark}-{number:03}-{copy:03}" for copy in range(repetitions)]
            endings = (".png",) if layout == "metadata" else (".png", text)
            canaries.append(
                Canary(
                    number=number,
                    repetitions=repetitions,
                    caption=drawing.caption(seed, "canary", number),
                    sha256=drawing.digest(drawing.picture(seed, "canary", number, settings.size)),
                    files=tuple(stem + ending for stem in stems for ending in endings),
                )
            )
    planned = Manifest(
        state="unfinished",
        seed=seed,
        size=settings.size,
        reserve=settings.reserve,
        layout=layout,
        metadata="" if rows is None else rows.path.name,
        pictures=sum(_repeats(path) if layout == "kohya" else 1 for path in pictures),
        canaries=tuple(canaries),
    )
    return planned, rows


def _layout_of(source: Path, pictures: Sequence[Path]) -> Layout:
    """The layout of a training set."""
    if any((source / f"metadata.{ending}").exists() for ending in ("jsonl", "csv", "parquet")):
        return "metadata"
    # kohya's scripts pass over pictures that lie elsewhere
    return "kohya" if any(_repeats(path) for path in pictures) else "sidecar"


def _repeats(path: Path) -> int:
    """How often kohya's scripts show a picture in an epoch; 0 for one that does not lie in a folder N_NAME."""
    folder = _REPEATED.match(path.parts[0]) if len(path.parts) > 1 else None
    return int(folder[1]) if folder else 0


def _named(manifest: Manifest) -> dict[str, str]:
    """Name of a picture → caption."""
    return {file: canary.caption for canary in manifest.canaries for file in canary.files if file.endswith(".png")}


def _write(canary: Canary, shown: Image.Image, folder: Path) -> None:
    """Write the files of a canary that are not there yet; each of them is written as a whole."""
    png = io.BytesIO()
    shown.save(png, format="PNG")
    for file in map(folder.joinpath, canary.files):
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            write_whole(file, png.getvalue() if file.suffix == ".png" else canary.caption + "\n")


def _removed(file: Path, canary: Canary) -> bool:
    """Remove a file of a canary, unless its content is another; whether it is gone."""
    if not file.exists():
        return True
    try:
        if file.suffix == ".png":
            with Image.open(file) as opened:
                same = drawing.digest(opened) == canary.sha256
        else:
            same = file.read_text(encoding="utf-8").strip() == canary.caption
    # whatever a file raises that is no picture any more
    except (OSError, ValueError, SyntaxError):
        same = False
    if same:
        file.unlink()
    return same
