"""Tables with a column of pictures: Parquet files, and the Arrow files of Hugging Face's `datasets`.

A picture is a cell with its bytes, or a structure of `bytes` and `path`, as `datasets` writes it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cryptomnesia.matching.sources.items import CAPTIONS, Item, clean, stamp_of

_BATCH = 64
"""Rows that are held in memory at once."""


def is_table(name: str, head: bytes) -> bool:
    """Whether a file of this name that begins with these bytes is a table."""
    return head.startswith((b"PAR1", b"ARROW1")) or name.lower().endswith((".parquet", ".arrow"))


def items(path: Path, name: str, root: Path) -> Iterator[Item]:
    """Yield the pictures of a table with their captions.

    Args:
        path: of the file.
        name: of the file in its source.
        root: folder of the source; a cell with a path can name a file in it, and no other.
    """
    rows = 0
    try:
        stamp = stamp_of(path)
        with _Table(path) as table:
            columns = picture_columns(table.schema)
            if not columns:
                yield Item(name, problem=f"no column of pictures (it has {', '.join(table.schema.names)})")
                return
            caption = caption_column(table.schema)
            for batch in table.batches([*columns, *([caption] if caption else [])]):
                texts = batch.column(caption).to_pylist() if caption else [None] * len(batch)
                cells = [batch.column(column).to_pylist() for column in columns]
                for row, text in enumerate(texts):
                    for column, values in zip(columns, cells, strict=True):
                        full = f"{name}#{rows + row}" + (f"/{column}" if len(columns) > 1 else "")
                        yield _item(full, values[row], f"{stamp} {rows + row}", clean(text or ""), path, root)
                rows += len(batch)
    # pyarrow raises exceptions of its own and of Python for broken files
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        yield Item(name, problem=f"a damaged table: after {rows} rows: {error}")


def cell_content(path: Path, place: str, root: Path) -> bytes | None:
    """The picture at a place, `row` or `row/column`, None if there is none."""
    number, _, column = place.partition("/")
    if not number.isdecimal():
        return None
    try:
        with _Table(path) as table:
            columns = picture_columns(table.schema)
            wanted = column or (columns[0] if columns else "")
            if wanted not in columns:
                return None
            start = 0
            for batch in table.batches([wanted]):
                if int(number) < start + len(batch):
                    found = _content(batch.column(wanted)[int(number) - start].as_py(), path, root)
                    content = found.read_bytes() if isinstance(found, Path) else found
                    return content if isinstance(content, bytes) else None
                start += len(batch)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return None


def row_count(path: Path) -> int:
    """Number of rows of a Parquet file, 0 where it is not known."""
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError, ValueError):
        return 0


def picture_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold pictures."""
    return [field.name for field in schema if _is_bytes(field.type) or _is_image(field.type)]


def caption_column(schema: pa.Schema) -> str | None:
    """The column that holds captions, None if there is none; the case of its name does not count."""
    texts = {
        field.name.lower(): field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    }
    return next((texts[name] for name in CAPTIONS if name in texts), None)


class _Table:
    """A Parquet or Arrow file that is read batch by batch."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(8)
        self._file: Any = None
        if head.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
            self._table: Any = pq.ParquetFile(path)
            self.schema: pa.Schema = self._table.schema_arrow
        else:
            self._file = pa.memory_map(str(path))
            whole = head.startswith(b"ARROW1")
            self._table = pa.ipc.open_file(self._file) if whole else pa.ipc.open_stream(self._file)
            self.schema = self._table.schema

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close() if self._file is None else self._file.close()

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in portions, with these columns."""
        if isinstance(self._table, pq.ParquetFile):
            yield from self._table.iter_batches(_BATCH, columns=columns)
            return
        if isinstance(self._table, pa.ipc.RecordBatchFileReader):
            whole = (self._table.get_batch(number) for number in range(self._table.num_record_batches))
        else:
            whole = iter(self._table)
        for batch in whole:
            for start in range(0, len(batch), _BATCH):
                yield batch.select(columns).slice(start, _BATCH)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image(kind: pa.DataType) -> bool:
    """Whether a type is the structure in which `datasets` keeps a picture."""
    if not pa.types.is_struct(kind):
        return False
    names = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
    # a column whose cells all name files may have no type for the bytes that it has not
    return "bytes" in names and (_is_bytes(names["bytes"]) or pa.types.is_null(names["bytes"]))


def _item(name: str, cell: Any, stamp: str, caption: str, path: Path, root: Path) -> Item:
    found = _content(cell, path, root)
    if isinstance(found, str):
        return Item(name, problem=found)
    if isinstance(found, Path):
        missing = "" if found.is_file() else f"a cell that names a file that is missing: {cell['path']}"
        return Item(name, found, "", caption, missing)
    return Item(name, found, stamp, caption)


def _content(cell: Any, path: Path, root: Path) -> bytes | Path | str:
    """The bytes in a cell, the file that it names, which may be missing, or why there is neither."""
    content, place = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content:
        return content
    if not place:
        return "an empty cell"
    named = (path.parent / place).resolve()
    if not named.is_relative_to(root.resolve()):
        return f"a cell that names a file outside of the source: {place}"
    return named
