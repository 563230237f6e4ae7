"""`match`: which pictures reproduce training images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cryptomnesia import __version__
from cryptomnesia.cli.common import AsJson, app
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_matches, progress_bar
from cryptomnesia.report.rows import Compared
from cryptomnesia.settings import MatchSettings

if TYPE_CHECKING:
    from cryptomnesia.matching import ImageIndex

_PORTION = 64
"""Pictures that are compared at once."""


@app.command()
@settings_flags(arguments=["images"], needed=["images", "index"])
def match(settings: MatchSettings, as_json: AsJson = False) -> None:
    """Compare pictures with an index of training images, and say which of them are reproduced.

    Exit code 0: no picture reproduces a training image. 1: a picture does. 3: no picture does, but some files in the
    folders could not be read.
    """
    from cryptomnesia.matching import SSCD, ImageIndex

    folder = Path(str(settings.index))
    index = ImageIndex(folder) if settings.sscd is None else ImageIndex(folder, SSCD(settings.sscd))
    named, inside, skipped = _files(settings.images)
    paths = list(dict.fromkeys([*named, *inside]))
    rows: list[Compared] = []
    with progress_bar() as report:
        report("pictures", 0, len(paths))
        for start in range(0, len(paths), _PORTION):
            part = paths[start : start + _PORTION]
            rows += _compared(part, index, settings.fpr, named, skipped)
            report("pictures", start + len(part), len(paths))
    for path, why in skipped.items():
        typer.echo(f"skipped {path}: {why}", err=True)
    if as_json:
        result = {
            "cryptomnesia": __version__,
            "index": str(folder),
            "descriptor": index.descriptor.name,
            "fpr": settings.fpr,
            "pictures": [row.to_json() for row in rows],
            "skipped": skipped,
        }
        typer.echo(json.dumps(result, indent=2))
    else:
        print_matches(rows, settings.fpr)
    if any(row.reproduced for row in rows):
        raise typer.Exit(1)
    raise typer.Exit(3 if skipped else 0)


def _files(given: Sequence[Path]) -> tuple[list[Path], list[Path], dict[str, str]]:
    """The picture files among some paths, those in the folders among them, and path → reason for those left out.

    Raises:
        UsageError: for a path that does not exist, or a folder without pictures.
    """
    from cryptomnesia.matching.building import pictures_of

    named: list[Path] = []
    inside: list[Path] = []
    skipped: dict[str, str] = {}
    for path in given:
        if path.is_dir():
            names, left_out = pictures_of(path)
            if not names:
                raise UsageError(f"no pictures in {path}; give picture files, or a folder of pictures")
            inside += [path / name for name in names]
            skipped |= {str(path / name): why for name, why in left_out.items()}
        elif path.is_file():
            named.append(path)
        else:
            raise UsageError(f"no file {path}; give the path of a picture, or a folder of pictures")
    return named, inside, skipped


def _compared(
    paths: Sequence[Path], index: "ImageIndex", fpr: float, named: Sequence[Path], skipped: dict[str, str]
) -> list[Compared]:
    """What the index says of pictures; files that cannot be read are added to `skipped`.

    Raises:
        UsageError: if a file that was named by itself cannot be read.
    """
    from cryptomnesia.matching.building import read_square
    from cryptomnesia.matching.matched import match as compare

    pictures = {}
    for path in paths:
        read = read_square(path, index.descriptor.side)
        if not isinstance(read, str):
            pictures[path] = read
        elif path in named:
            raise UsageError(f"{path} is no picture that can be read ({read}); give another")
        else:
            skipped[str(path)] = read
    if not pictures:
        return []
    found = compare(list(pictures.values()), index, fpr=fpr)
    return [
        Compared(str(path), one.path, one.distance, one.relative, one.p_value, one.reproduced)
        for path, one in zip(pictures, found, strict=True)
    ]
