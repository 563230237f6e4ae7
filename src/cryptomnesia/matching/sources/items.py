"""What a source yields, and how the content of a file tells what it is."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from cryptomnesia.decoding import FORMATS

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""Endings of files that are taken for pictures without a look at their content."""

HEAD = 512
"""Bytes at the beginning of a file that tell what it is."""

NOT_A_PICTURE = "not a picture"
SYSTEM_FILE = "a file of the operating system"

NOT_PICTURES = (NOT_A_PICTURE, SYSTEM_FILE)
"""Reasons why a file is left out that is none of the pictures."""

AGAIN = "a second picture of the same name"

CAPTIONS = ("caption", "text", "prompt")
"""Names of the column or key that holds a caption, in the order in which they are looked for."""

_SYSTEM_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})

_FOREIGN = {
    b"%!PS": "a PostScript file",
    b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\x76\x2f\x31\x01": "an OpenEXR picture",
    b"PK\x03\x04": "a ZIP archive; unpack it",
}
"""Beginnings of files that hold pictures but are not read."""

_FOREIGN_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


@dataclass(frozen=True)
class Span:
    """Bytes inside of a file.

    Attributes:
        path: of the file.
        offset: of the first byte.
        size: number of bytes.
    """

    path: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """The bytes.

        Raises:
            EOFError: if the file ends before.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise EOFError(f"the file ends after {len(content)} of {self.size} bytes")
        return content


@dataclass(frozen=True)
class Item:
    """A picture of a source, or something that is left out.

    Attributes:
        name: of the picture, by which `content_of` finds it again.
        content: a file, bytes in a file or in memory, or a picture in memory; None if it is left out.
        stamp: text that changes when the content may have changed; "" if only the content itself can tell.
        caption: of the picture, "" if there is none.
        problem: why it is left out, as one line of at most 250 letters; "" if it is not left out.
    """

    name: str
    content: Path | Span | bytes | Image.Image | Any = None
    stamp: str = ""
    caption: str = ""
    problem: str = ""

    def __post_init__(self) -> None:
        """Make one line of what another library says."""
        if self.problem:
            object.__setattr__(self, "problem", " ".join(self.problem.split())[:250])


@dataclass(frozen=True)
class Packed:
    """A shard or table that has to be read.

    Attributes:
        name: of the file in its source.
        path: of the file.
        size: of the file in bytes.
        root: folder of the source.
        is_tar: whether it is a tar shard; else it is a table.
    """

    name: str
    path: Path
    size: int
    root: Path
    is_tar: bool


@dataclass(frozen=True)
class Unchanged:
    """A shard or table all of whose pictures are in the index, by the stamp of its file."""

    name: str


class Source(Protocol):
    """Where training pictures lie.

    Attributes:
        root: the folder that names are relative to, as text, by which an index knows its source.
        total: number of items, as far as it is known yet.
        stamps: name → stamp of the shards and tables among the parts.
    """

    root: str
    total: int
    stamps: dict[str, str]

    def parts(self, known: Mapping[str, str]) -> Iterator[Item | Packed | Unchanged]:
        """Yield the parts; a shard whose stamp is that in `known` (name → stamp) is unchanged."""
        ...


def as_text(path: str) -> str:
    """A path as text for reports. Bytes of a file name that are no text are replaced."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def stamp_of(path: Path) -> str:
    """Size and times of a file. The time of the last change of its entry cannot be set by a program that copies it."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def is_system_file(name: str) -> bool:
    """Whether a file of this name is one that an operating system writes beside pictures."""
    last = name.rpartition("/")[2].lower()
    return last in _SYSTEM_NAMES or last.startswith("._")


def looks_like_picture(head: bytes) -> bool:
    """Whether a file that begins with these bytes may be a picture of a known format."""
    Image.init()
    accepts = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    # Pillow looks at bytes that a short file does not have
    start = head[:32].ljust(32, b"\0")
    return bool(head) and any(accept is not None and accept(start) is True for accept in accepts)


def why_no_picture(head: bytes) -> str:
    """Why a file that begins with these bytes is left out."""
    if not head:
        return f"{NOT_A_PICTURE}: an empty file"
    if head[4:8] == b"ftyp" and head[8:12] in _FOREIGN_BRANDS:
        return "a format that is not read: a HEIC picture"
    foreign = next((what for start, what in _FOREIGN.items() if head.startswith(start)), None)
    return NOT_A_PICTURE if foreign is None else f"a format that is not read: {foreign}"


def caption_in(values: Mapping[str, Any]) -> str:
    """The caption among named values, "" if there is none; the case of the names does not count."""
    texts = {str(name).lower(): value for name, value in values.items() if isinstance(value, str)}
    return next((clean(texts[name]) for name in CAPTIONS if texts.get(name, "").strip()), "")


def clean(caption: str) -> str:
    """A caption without blanks around it; halves of characters, which no file of text can hold, become "?"."""
    return caption.strip().encode(errors="replace").decode()


def ordered(skipped: Mapping[str, str]) -> dict[str, str]:
    """What was left out, sorted, pictures before files that are none."""
    return dict(sorted(skipped.items(), key=lambda pair: (pair[1].startswith(NOT_PICTURES), pair[0])))


def by_reason(skipped: Mapping[str, str]) -> dict[str, int]:
    """Reason → number of what was left out for it, the most frequent first; details behind a colon do not count."""
    return dict(Counter(why.partition(":")[0] for why in skipped.values()).most_common())
