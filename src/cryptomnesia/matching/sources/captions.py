"""Captions that lie beside pictures: a text or JSON file of the same name, or a metadata file of the folder."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cryptomnesia.matching.sources.items import caption_in, clean

SIDECARS = (".txt", ".caption", ".json")
"""Endings of a caption file beside a picture, in the order in which they are looked for."""

METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
"""Names of files with the captions of a folder, as `imagefolder` of Hugging Face reads them."""


def of_sidecar(suffix: str, content: bytes) -> str:
    """The caption in a file beside a picture.

    Raises:
        ValueError: if the file is no JSON although its suffix says so.
    """
    text = content.decode("utf-8-sig", errors="replace")
    if suffix != ".json":
        return clean(text)
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return caption_in(value) if isinstance(value, Mapping) else ""


def of_metadata(path: Path) -> dict[str, str]:
    """File name → caption, from a metadata file.

    Raises:
        ValueError: if it cannot be read, or has no column or key `file_name`.
    """
    readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        ".jsonl": _of_lines,
        ".csv": _of_csv,
        ".parquet": _of_table,
    }
    try:
        rows = readers[path.suffix.lower()](path)
    except (OSError, csv.Error, pa.ArrowException, RecursionError) as error:
        raise ValueError(str(error)) from None
    captions = {str(row["file_name"]): caption_in(row) for row in rows if row.get("file_name")}
    if rows and not captions:
        raise ValueError("it names no files; it needs `file_name`")
    return captions


def _of_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no object")
    return rows


def _of_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _of_table(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()
