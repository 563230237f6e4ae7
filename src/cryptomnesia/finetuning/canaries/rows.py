"""Rows of the metadata file of a folder, as `imagefolder` of Hugging Face reads it: one picture and caption each.

Rows are added at the end and removed again, and everything else in the file stays as it is, byte for byte.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptomnesia.errors import UsageError
from cryptomnesia.files import write_whole
from cryptomnesia.matching.sources.items import CAPTIONS


@dataclass(frozen=True)
class Rows:
    """The rows of a metadata file.

    Attributes:
        path: metadata.jsonl, or metadata.csv; it need not be there.
        columns: names of a row's values, among them file_name.
    """

    path: Path
    columns: Sequence[str]

    @classmethod
    def found(cls, source: Path, folder: Path) -> "Rows":
        """The metadata file of a folder, or a new one with the caption under the same name as in the training set.

        Args:
            source: the training set.
            folder: that the file is of.

        Raises:
            UsageError: if the metadata cannot be added to.
        """
        for place in dict.fromkeys((folder, source)):
            for name in ("metadata.jsonl", "metadata.csv"):
                if (place / name).exists():
                    rows = cls.of(place / name)
                    return rows if place == folder else cls(folder / "metadata.jsonl", ("file_name", rows._caption))
        if (parquet := source / "metadata.parquet").exists():
            raise UsageError(f"cannot add rows to {parquet}; write the same table as metadata.jsonl")
        raise UsageError(f"no metadata.jsonl or metadata.csv in {source}; give the layout sidecar or kohya")

    @classmethod
    def of(cls, path: Path) -> "Rows":
        """The rows of a file.

        Raises:
            UsageError: if it does not name files and captions.
        """
        try:
            first = next((line for line in _lines(path) if line.strip()), "").removeprefix("\ufeff")
            columns = next(csv.reader([first]), []) if path.suffix == ".csv" else [*dict(json.loads(first or "{}"))]
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise UsageError(f"cannot read {path} ({error}); repair it") from None
        if path.suffix == ".jsonl" and not columns:
            columns = ["file_name", "text"]
        if "file_name" not in columns or not set(CAPTIONS) & set(columns):
            raise UsageError(
                f"{path} has {', '.join(columns) or 'no columns'}; a row needs file_name and one of "
                f"{', '.join(CAPTIONS)}, so rename the column of the captions"
            )
        return cls(path, tuple(columns))

    @property
    def _caption(self) -> str:
        return next(name for name in CAPTIONS if name in self.columns)

    def add(self, captions: Mapping[str, str]) -> None:
        """Add one row per name of a file → caption, unless it is there."""
        lines = _lines(self.path) if self.path.exists() else [""]
        present = {line.rstrip("\r") for line in lines}
        ending = "\r" if lines[0].endswith("\r") else ""
        new = [row + ending for row in self._rows(captions) if row not in present]
        # a file that ends with a line break still does
        last = len(lines) - (not lines[-1])
        self._write([*lines[:last], *new, *lines[last:]])

    def remove(self, captions: Mapping[str, str]) -> None:
        """Remove these rows; and the file, if nothing is left in it."""
        ours = set(self._rows(captions))
        lines = [line for line in _lines(self.path) if line.rstrip("\r") not in ours]
        if any(lines):
            self._write(lines)
        else:
            self.path.unlink()

    def _rows(self, captions: Mapping[str, str]) -> list[str]:
        """The lines of rows, without line breaks."""
        return [self._row({"file_name": file, self._caption: text}) for file, text in captions.items()]

    def _row(self, values: Mapping[str, str]) -> str:
        if self.path.suffix == ".jsonl":
            return json.dumps(values, ensure_ascii=False)
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([values.get(column, "") for column in self.columns])
        return text.getvalue()

    def _write(self, lines: Sequence[str]) -> None:
        write_whole(self.path, "\n".join(lines))


def _lines(path: Path) -> list[str]:
    """The lines of a file in UTF-8; the last one is empty if the file ends with a line break."""
    return path.read_bytes().decode().split("\n")
