"""Find the content of a training picture again by its name."""

from pathlib import Path

from cryptomnesia.matching.sources import tables, tars


def content_of(source: Path, name: str) -> bytes | None:
    """The content of a picture of a source, None if it is not there.

    A name may come from elsewhere, so it finds nothing outside of the source.

    Args:
        source: the folder of the source, or one of its shards.
        name: of the picture in an index of the source.
    """
    root = source if source.is_dir() else source.parent
    try:
        direct = root / name
        if direct.is_file():
            return direct.read_bytes() if _inside(direct, root) else None
        for cut in (place for place, letter in enumerate(name) if letter in "/#"):
            file, rest = root / name[:cut], name[cut + 1 :]
            if file.is_file() and _inside(file, root):
                return tars.member_content(file, rest) if name[cut] == "/" else tables.cell_content(file, rest, root)
    # a name may hold a zero byte
    except (OSError, ValueError):
        return None
    return None


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())
