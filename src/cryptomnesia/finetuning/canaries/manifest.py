"""The file `canaries.json`: which canaries were added to a folder, and the seed that draws them and the reserve.

Whoever knows the seed can draw the reserve, so the file is not to be published before the training.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

import cryptomnesia
from cryptomnesia.errors import UsageError
from cryptomnesia.files import write_whole
from cryptomnesia.finetuning.canaries import drawing

FILE = "canaries.json"
"""Name of the manifest in the folder that the canaries were added to."""

KIND, FORMAT = "canaries", 1

State = Literal["unfinished", "complete", "removed"]
"""Whether all canaries are in the folder, or were taken out again."""

Layout = Literal["sidecar", "metadata", "kohya"]
"""Where a training reads captions and repetitions: a text file beside every picture, the file metadata.jsonl or
metadata.csv of the folder, or folders named N_NAME whose pictures are shown N times an epoch."""


@dataclass(frozen=True)
class Canary:
    """A canary, or a picture of the reserve.

    Attributes:
        number: of the drawing.
        repetitions: how often an epoch shows it; 0 for the reserve.
        caption: with an invented name.
        sha256: of its pixels, "" for the reserve.
        files: pictures and their text files, relative to the folder; none of the reserve.
    """

    number: int
    repetitions: int
    caption: str
    sha256: str = ""
    files: Sequence[str] = ()

    def drawn(self, seed: int, size: int) -> Image.Image:
        """The picture of `size` × `size` pixels."""
        return drawing.picture(seed, "canary" if self.repetitions else "reserve", self.number, size)


@dataclass(frozen=True)
class Manifest:
    """What was added to a training set.

    Attributes:
        state: see `State`.
        seed: draws canaries and reserve.
        size: of the pictures in pixels.
        reserve: number of pictures that are never added.
        layout: see `Layout`.
        metadata: name of the metadata file that names the canaries, "" without one.
        pictures: of the trainer, as often as an epoch shows them.
        canaries: by repetitions.
    """

    state: State
    seed: int
    size: int
    reserve: int
    layout: Layout
    metadata: str
    pictures: int
    canaries: Sequence[Canary]

    @property
    def shown(self) -> int:
        """How many of the pictures of an epoch are canaries."""
        return sum(canary.repetitions for canary in self.canaries)

    @property
    def share(self) -> float:
        """Share of the pictures of an epoch that are canaries."""
        return self.shown / (self.shown + self.pictures)

    @property
    def files(self) -> Iterator[str]:
        """All files that were added, relative to the folder."""
        return (file for canary in self.canaries for file in canary.files)

    def never_added(self) -> list[Canary]:
        """Pictures like the canaries that no training was given, in their order; they are drawn anew from the seed."""
        return [Canary(one, 0, drawing.caption(self.seed, "reserve", one)) for one in range(self.reserve)]

    def write(self, folder: Path, state: State) -> "Manifest":
        """Write it into a folder as a whole, in another state."""
        written = replace(self, state=state)
        about = {"kind": KIND, "format": FORMAT, "cryptomnesia": cryptomnesia.__version__}
        write_whole(folder / FILE, json.dumps({**about, **asdict(written)}, indent=1) + "\n")
        return written

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """Read a manifest, by its own path or by that of its folder.

        Raises:
            UsageError: if there is none, or it is damaged.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise UsageError(f"no canaries {path}; add some with `cryptomnesia canaries make`")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if (found["kind"], found["format"]) != (KIND, FORMAT) or found["state"] not in get_args(State):
                raise ValueError(f"kind {found['kind']}, format {found['format']}")
            return cls._of(found)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(
                f"{path} is no manifest of canaries ({type(error).__name__}: {error}); give the {FILE} that "
                "`cryptomnesia canaries make` wrote"
            ) from None

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> "Manifest":
        """The manifest of JSON values.

        Raises:
            KeyError: if a value is missing.
            TypeError: if one is of another type.
        """
        values = {field.name: found[field.name] for field in fields(cls)}
        canaries = [Canary(**{**one, "files": tuple(one["files"])}) for one in values["canaries"]]
        numbers = [values[name] for name in ("seed", "size", "reserve", "pictures")]
        numbers += [number for canary in canaries for number in (canary.number, canary.repetitions)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise TypeError("a number is none")
        inside = [Path(file) for canary in canaries for file in canary.files] + [Path(values["metadata"])]
        if any(".." in file.parts or file.is_absolute() for file in inside):
            raise ValueError("a file lies outside of the folder")
        return cls(**{**values, "canaries": tuple(canaries)})
