"""Pictures in files: in folders with all their subfolders, in tar shards and in tables."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path, PurePosixPath

from cryptomnesia.errors import UsageError
from cryptomnesia.matching.sources import captions, tables, tars
from cryptomnesia.matching.sources.items import (
    HEAD,
    PICTURE_SUFFIXES,
    SYSTEM_FILE,
    Item,
    Packed,
    Unchanged,
    is_system_file,
    looks_like_picture,
    stamp_of,
    why_no_picture,
)


class FileSource:
    """A folder, files, or both.

    Attributes:
        root: the folder that names are relative to.
        shown: the folder as it was given, for messages.
        total: number of items, as far as it is known yet.
        stamps: name → stamp of the shards and tables among the parts.
    """

    def __init__(self, given: Sequence[Path], exclude: Path | None = None, shown: str | Path | None = None) -> None:
        """Find all files.

        Args:
            given: folders and files that exist.
            exclude: a folder that is left out, that of the index itself.
            shown: see the attribute; `root` by default.
        """
        places = [path.resolve() for path in given]
        folders = [path if path.is_dir() else path.parent for path in places]
        root = Path(os.path.commonpath(folders))
        self.root = str(root)
        self.shown = str(root if shown is None else shown)
        self.stamps: dict[str, str] = {}
        self._root = root
        self._exclude = None if exclude is None else exclude.resolve()
        self._problems: dict[str, str] = {}
        names = {name for path in places for name in ([self._name(path)] if path.is_file() else self._walk(path))}
        stems = {_stem(name) for name in names if _suffix(name) in PICTURE_SUFFIXES}
        self._captions = self._metadata(names)
        self._beside = {
            name
            for name in names
            if _suffix(name) in captions.SIDECARS and _stem(name) in stems and not is_system_file(name)
        }
        self._names = sorted(names - self._beside)
        self.total = len(self._names) + len(self._problems)

    def parts(self, known: Mapping[str, str]) -> Iterator[Item | Packed | Unchanged]:
        """Yield the parts; a shard whose stamp is that in `known` is unchanged."""
        for name, problem in sorted(self._problems.items()):
            yield Item(name, problem=problem)
        for name in self._names:
            path = self._root / name
            try:
                if is_system_file(name):
                    yield Item(name, problem=SYSTEM_FILE)
                elif _suffix(name) in PICTURE_SUFFIXES:
                    yield from self._picture(name, path)
                else:
                    yield from self._by_content(name, path, known)
            except OSError as error:
                yield Item(name, problem=f"cannot be read: {error.strerror}")

    def _by_content(self, name: str, path: Path, known: Mapping[str, str]) -> Iterator[Item | Packed | Unchanged]:
        """The parts of a file whose name does not say that it is a picture."""
        with path.open("rb") as file:
            head = file.read(HEAD)
        if tars.is_tar(name, head):
            yield self._shard(name, path, known, is_tar=True)
        elif tables.is_table(name, head):
            self.total += max(0, tables.row_count(path) - 1)
            yield self._shard(name, path, known, is_tar=False)
        elif looks_like_picture(head):
            yield from self._picture(name, path)
        else:
            yield Item(name, problem=why_no_picture(head))

    def _shard(self, name: str, path: Path, known: Mapping[str, str], *, is_tar: bool) -> Packed | Unchanged:
        stamp = self.stamps[name] = stamp_of(path)
        return (
            Unchanged(name) if known.get(name) == stamp else Packed(name, path, path.stat().st_size, self._root, is_tar)
        )

    def _picture(self, name: str, path: Path) -> Iterator[Item]:
        """A picture in a file of its own, with the caption beside it."""
        caption = self._captions.get(name, "")
        for suffix in captions.SIDECARS:
            beside = _stem(name) + suffix
            if caption or beside not in self._beside:
                continue
            try:
                caption = captions.of_sidecar(suffix, (self._root / beside).read_bytes())
            except (OSError, ValueError) as error:
                yield Item(beside, problem=f"a caption that cannot be read: {error}")
        yield Item(name, path, stamp_of(path), caption)

    def _metadata(self, names: set[str]) -> dict[str, str]:
        """Captions from the metadata files, which are taken out of `names`."""
        found: dict[str, str] = {}
        for name in sorted(name for name in names if PurePosixPath(name).name in captions.METADATA):
            try:
                rows = captions.of_metadata(self._root / name)
            except (ValueError, UnicodeDecodeError) as error:
                self._problems[name] = f"metadata that cannot be read: {error}"
                names.remove(name)
                continue
            names.remove(name)
            folder = PurePosixPath(name).parent
            found |= {str(folder / file): caption for file, caption in rows.items()}
        return found

    def _walk(self, folder: Path) -> Iterator[str]:
        """The names of all files of a folder; links out of it and links that lead nowhere become problems."""

        def unreadable(error: OSError) -> None:
            self._problems[self._name(Path(error.filename))] = f"a folder that cannot be read: {error.strerror}"

        for where, folders, files in os.walk(folder, onerror=unreadable):
            if self._exclude is not None:
                folders[:] = [name for name in folders if Path(where, name) != self._exclude]
            for name in (*folders, *files):
                path = Path(where, name)
                linked = path.is_symlink()
                # realpath accepts links that lead in a circle, resolve does not
                if linked and not Path(os.path.realpath(path)).is_relative_to(folder):
                    self._problems[self._name(path)] = "a link that leads out of the folder"
                elif path.is_file():
                    yield self._name(path)
                elif linked and not path.is_dir():
                    self._problems[self._name(path)] = "a link that leads nowhere"

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def unpacked(parts: Iterable[Item | Packed | Unchanged]) -> Iterator[Item]:
    """Yield the items of some parts; none of what is unchanged."""
    for part in parts:
        if isinstance(part, Item):
            yield part
        elif isinstance(part, Packed) and part.is_tar:
            yield from tars.items(part.path, part.name)
        elif isinstance(part, Packed):
            yield from tables.items(part.path, part.name, part.root)


def check_source(images: str | Path) -> list[Path]:
    """The folders and files that a path or pattern names.

    A pattern has braces: `{000..010}.tar` for numbers, `{a,b}` for alternatives.

    Raises:
        UsageError: if one of them does not exist.
    """
    if not str(images).strip():
        raise UsageError("got an empty path; give the folder of the training images, a tar shard, a table or a picture")
    paths = [Path(text) for text in ([str(images)] if exists(Path(images)) else expanded(str(images)))]
    for path in paths:
        if not exists(path):
            raise UsageError(
                f"no folder or file {path}; give the folder of the training images, a tar shard, a table or a picture"
            )
    return paths


def exists(path: Path) -> bool:
    """Whether there is a file or folder of this name, which may be too long for one."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:
        return False


def expanded(pattern: str) -> list[str]:
    """All texts that a pattern with braces stands for, in its order."""
    parts = re.split(r"(\{[^{}]*\})", pattern)
    return ["".join(choice) for choice in product(*(_choices(part) for part in parts))]


def _choices(part: str) -> list[str]:
    if numbers := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part):
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= 1_000_000:
            raise UsageError(f"got {part}, which stands for more than a million files; give fewer")
        step = 1 if first <= last else -1
        return [f"{number:0{len(numbers[1])}}" for number in range(first, last + step, step)]
    if part.startswith("{") and "," in part:
        return part[1:-1].split(",")
    return [part]


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)


def _suffix(name: str) -> str:
    last = name.rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""
