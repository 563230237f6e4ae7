"""`match`: which pictures reproduce training images."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cryptomnesia import __version__
from cryptomnesia.cli.common import AsJson, app
from cryptomnesia.cli.indexing import descriptor_of
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_matches, progress_bar
from cryptomnesia.report.rows import Compared
from cryptomnesia.settings import MatchSettings

if TYPE_CHECKING:
    from cryptomnesia.matching import ImageIndex
    from cryptomnesia.matching.sources import FileSource, Item

_PORTION = 64
"""Pictures that are compared at once."""


@app.command()
@settings_flags(arguments=["images"], needed=["images", "index"])
def match(settings: MatchSettings, as_json: AsJson = False) -> None:
    """Compare pictures with an index of training images, and say which of them are reproduced.

    Exit code 0: no picture reproduces a training image. 1: a picture does. 3: no picture does, but some files in the
    folders could not be read.
    """
    from cryptomnesia.matching import ImageIndex

    folder = settings.index
    # `settings_flags` saw to it
    assert folder is not None
    index = ImageIndex(folder, descriptor_of(settings.sscd, settings.device))
    given = _Given.of(settings.images)
    rows: list[Compared] = []
    skipped: dict[str, str] = {}
    with progress_bar() as report:
        report("pictures", 0, given.total)
        pictures = given.items(skipped)
        while part := list(islice(pictures, _PORTION)):
            rows += _compared(part, index, settings.fpr, given.named, skipped)
            report("pictures", len(rows) + len(skipped), given.total)
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


@dataclass(frozen=True)
class _Given:
    """The pictures that are to be compared.

    Attributes:
        named: files that were given by themselves.
        folders: folders that are searched.
    """

    named: list[Path]
    folders: list["FileSource"]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "_Given":
        """The files and folders among some paths.

        Raises:
            UsageError: for a path that does not exist.
        """
        from cryptomnesia.matching.sources import FileSource, exists

        if missing := [path for path in paths if not exists(path)]:
            raise UsageError(f"no file {missing[0]}; give the path of a picture, or a folder of pictures")
        unique = list(dict.fromkeys(paths))
        return cls(
            [path for path in unique if not path.is_dir()],
            [FileSource([path], shown=path) for path in unique if path.is_dir()],
        )

    @property
    def total(self) -> int:
        """The number of items, as far as it is known yet."""
        return len(self.named) + sum(source.total for source in self.folders)

    def items(self, skipped: dict[str, str]) -> Iterator["Item"]:
        """Yield the pictures, each once; those that cannot be read are added to `skipped`, other files are not.

        Raises:
            UsageError: for a folder without pictures.
        """
        from cryptomnesia.matching.sources import NOT_PICTURES, Item, unpacked

        seen = {path.resolve() for path in self.named}
        yield from (Item(str(path), path) for path in self.named)
        for source in self.folders:
            empty = True
            for item in unpacked(source.parts({})):
                if item.problem.startswith(NOT_PICTURES):
                    continue
                empty = False
                name = str(Path(source.shown, item.name))
                if item.problem:
                    skipped[name] = item.problem
                elif not (isinstance(item.content, Path) and item.content in seen):
                    seen |= {item.content} if isinstance(item.content, Path) else set()
                    yield replace(item, name=name)
            if empty:
                raise UsageError(f"no pictures in {source.shown}; give picture files, or a folder of pictures")


def _compared(
    items: Sequence["Item"], index: "ImageIndex", fpr: float, named: Sequence[Path], skipped: dict[str, str]
) -> list[Compared]:
    """What the index says of pictures; files that cannot be read are added to `skipped`.

    Raises:
        UsageError: if a file that was named by itself cannot be read.
    """
    from cryptomnesia.matching.matched import match as compare
    from cryptomnesia.matching.reading import read_item

    pictures = {}
    for item in items:
        found = read_item(item, index.descriptor.side)
        if not isinstance(found, str):
            pictures[item.name] = found
        elif Path(item.name) in named:
            raise UsageError(f"{item.name} is no picture that can be read ({found}); give another")
        else:
            skipped[item.name] = found
    if not pictures:
        return []
    matches = compare(list(pictures.values()), index, fpr=fpr)
    return [
        Compared(name, one.path, one.distance, one.relative, one.p_value, one.reproduced, one.reading, one.caption)
        for name, one in zip(pictures, matches, strict=True)
    ]
