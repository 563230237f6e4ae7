"""The formats of files with prompts, by their endings."""

from collections.abc import Callable
from pathlib import Path

from cryptomnesia.prompts import tables, text_files

READERS: dict[str, Callable[[Path, str | None], list[str]]] = {
    ".txt": text_files.lines,
    ".csv": text_files.table,
    ".tsv": text_files.table,
    ".jsonl": text_files.json_lines,
    ".ndjson": text_files.json_lines,
    ".json": text_files.json_list,
    ".parquet": tables.parquet,
}
"""Ending of a file → what reads its prompts, also blank ones, from the column of that name or the usual one."""
