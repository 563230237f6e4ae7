"""Prompts from Parquet files, and from the Arrow files of the Hugging Face library `datasets`."""

import json
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.prompts.columns import chosen


def parquet(path: Path, column: str | None) -> list[str]:
    """The column with the prompts of a .parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise UsageError(f"no prompts file {path}; check the path")
    place = f"prompts file {path}"
    try:
        with pq.ParquetFile(path) as file:
            name = chosen(file.schema_arrow.names, column, place)
            return _texts(file.read(columns=[name]).column(0), name, place)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        if isinstance(error, UsageError):
            raise
        raise _unreadable(path, error) from None


def saved(path: Path, column: str | None) -> list[str]:
    """The prompts of a split that `save_to_disk` wrote."""
    import pyarrow as pa

    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise ValueError("it refers to rows of another data set; write it with flatten_indices()")
        names = [Path(part["filename"]).name for part in state["_data_files"]]
        prompts = []
        for name in names:
            with pa.memory_map(str(path / name)) as source:
                held = pa.ipc.open_stream(source).read_all()
                used = chosen(held.schema.names, column, f"prompts folder {path}")
                prompts += _texts(held.column(used), used, f"prompts folder {path}")
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise _unreadable(path, error) from None
    return prompts


def _texts(values: Any, name: str, place: str) -> list[str]:
    """The texts of a column, "" for null; lists of texts are joined."""
    import pyarrow as pa

    # offsets of a damaged file may point out of it, which would end the process
    values.validate(full=True)
    kind = values.type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)):
        # names inside a type of a damaged file may hold anything
        words = " ".join(str(kind).split())[:60]
        raise UsageError(f"{place}: the column {name} holds {words}, expected texts; give --column another name")
    found = values.to_pylist()
    flat = found if inner is kind else [text for texts in found for text in texts or [None]]
    return ["" if text is None else text for text in flat]


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())
    return UsageError(
        f"{path} is damaged or incomplete ({reason[:150]}); copy it again, or give another file of prompts"
    )
