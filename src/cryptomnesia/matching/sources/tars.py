"""Tar shards of WebDataset: the files of a sample have one key, its name up to the first dot, and lie together."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from cryptomnesia.matching.sources import captions
from cryptomnesia.matching.sources.items import (
    HEAD,
    PICTURE_SUFFIXES,
    SYSTEM_FILE,
    Item,
    Span,
    is_system_file,
    looks_like_picture,
    stamp_of,
    why_no_picture,
)

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_tar(name: str, head: bytes) -> bool:
    """Whether a file of this name that begins with these bytes is a tar file."""
    return head[257:262] == b"ustar" or name.lower().endswith(SUFFIXES)


def items(path: Path, name: str) -> Iterator[Item]:
    """Yield the pictures of a tar file with their captions; `name` is that of the file in its source."""
    members: list[tarfile.TarInfo] = []
    problem = ""
    try:
        with tarfile.open(path) as archive:
            stamp = stamp_of(path)
            try:
                for member in archive:
                    members.append(member)
            except (tarfile.TarError, OSError, EOFError) as error:
                problem = f"a damaged shard: it ends early ({error})"
            else:
                if not _has_end(path, archive):
                    problem = "a damaged shard: it has no end mark, so it may have been cut off"
            yield from _pictures(path, archive, members, name, stamp)
    # a damaged compressed file makes the decompressors raise exceptions of several modules
    except Exception as error:
        problem = f"a damaged shard: {type(error).__name__}: {error}"
    if problem:
        yield Item(name, problem=problem)


def member_content(path: Path, member: str) -> bytes | None:
    """The content of a member of a tar file, None if there is none; `key.jpg#2` is the second one of that name."""
    plain, _, number = member.rpartition("#")
    wanted, count = (plain, int(number)) if plain and number.isdecimal() else (member, 1)
    try:
        with tarfile.open(path) as archive:
            files = [one for one in archive if one.isfile()]
            exact = [one for one in files if one.name == member]
            same = exact or [one for one in files if one.name == wanted][count - 1 :]
            file = archive.extractfile(same[0]) if same else None
            return None if file is None else file.read()
    except (tarfile.TarError, OSError, EOFError):
        return None


def _pictures(
    path: Path, archive: tarfile.TarFile, members: list[tarfile.TarInfo], name: str, stamp: str
) -> Iterator[Item]:
    """The items of the members that could be listed."""
    plain = _is_plain(archive)
    files = [member for member in members if member.isfile()]
    pictures = {_key(member.name) for member in files if _suffix(member.name) in PICTURE_SUFFIXES}
    texts, used = {}, set()
    for member in files:
        key, suffix = _key(member.name), _suffix(member.name)
        if suffix in captions.SIDECARS and key in pictures:
            used.add(member.name)
            try:
                texts.setdefault(key, {})[suffix] = captions.of_sidecar(suffix, _read(archive, member))
            except ValueError as error:
                yield Item(f"{name}/{member.name}", problem=f"a caption that cannot be read: {error}")
    counts: dict[str, int] = {}
    for member in files:
        if member.name in used:
            continue
        number = counts[member.name] = counts.get(member.name, 0) + 1
        full = f"{name}/{member.name}" + (f"#{number}" if number > 1 else "")
        if is_system_file(member.name):
            yield Item(full, problem=SYSTEM_FILE)
            continue
        if _suffix(member.name) not in PICTURE_SUFFIXES:
            head = _read(archive, member, HEAD)
            if not looks_like_picture(head):
                yield Item(full, problem=why_no_picture(head))
                continue
        found = texts.get(_key(member.name), {})
        caption = next((found[suffix] for suffix in captions.SIDECARS if found.get(suffix)), "")
        lazy = plain and not member.issparse()
        content = Span(path, member.offset_data, member.size) if lazy else _read(archive, member)
        yield Item(full, content, f"{stamp} {member.offset_data} {member.size}", caption)
    for member in members:
        if not (member.isfile() or member.isdir()):
            yield Item(f"{name}/{member.name}", problem="a link or device in a shard")


def _is_plain(archive: tarfile.TarFile) -> bool:
    """Whether the bytes of the members lie in the file as they are, not compressed."""
    return type(archive.fileobj).__module__ in ("_io", "io")


def _has_end(path: Path, archive: tarfile.TarFile) -> bool:
    """Whether an uncompressed archive ends with a block of zeros."""
    if not _is_plain(archive):
        return True
    with path.open("rb") as file:
        file.seek(archive.offset)
        block = file.read(512)
    return len(block) == 512 and not any(block)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int = -1) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read(most)


def _key(name: str) -> str:
    """The key of a sample: the name of a member up to the first dot after the last slash."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _suffix(name: str) -> str:
    last = name.rpartition("/")[2]
    return f".{last.rpartition('.')[2].lower()}" if "." in last else ""
