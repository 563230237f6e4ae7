"""Prompts from Parquet files, and from folders as the Hugging Face library `datasets` has them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.prompts.columns import chosen

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files with the captions of a folder of pictures."""


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


def folder(path: Path, column: str | None) -> list[str]:
    """The prompts of a folder.

    It may be one that `Dataset.save_to_disk` wrote, a folder of pictures with `metadata.jsonl`, `.csv` or `.parquet`,
    or a clone of a data set from the hub with Parquet files. A folder with several splits is refused.

    Raises:
        UsageError: if it holds no prompts, or several splits of which one has to be named.
    """
    from cryptomnesia.prompts.reading import READERS

    if (path / "state.json").is_file():
        return _saved(path, column)
    splits = sorted(found.parent for found in path.glob("*/state.json"))
    splits = splits or sorted(found.parent for name in _METADATA for found in path.glob(f"*/{name}"))
    for name in _METADATA:
        if (path / name).is_file():
            return READERS[Path(name).suffix](path / name, column)
    if splits:
        return folder(_only(splits, path), column)
    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if files:
        # shards of a split are called train-00000-of-00002.parquet
        names = sorted({file.name.split("-")[0].removesuffix(".parquet") for file in files})
        if len(names) > 1:
            raise UsageError(
                f"prompts folder {path} holds Parquet files of {', '.join(names)}; give one file, for instance "
                f"{files[0]}"
            )
        return [text for file in files for text in parquet(file, column)]
    alone = [found for found in sorted(path.iterdir()) if found.suffix.lower() in READERS and found.is_file()]
    if len(alone) == 1:
        return READERS[alone[0].suffix.lower()](alone[0], column)
    raise UsageError(
        f"prompts folder {path} is no data set: expected what `save_to_disk` writes, a metadata.jsonl or .csv, or "
        "Parquet files; give such a folder, or a file"
    )


def _only(splits: Sequence[Path], path: Path) -> Path:
    """The only split of a data set."""
    if len(splits) > 1:
        raise UsageError(
            f"prompts folder {path} holds the splits {', '.join(split.name for split in splits)}; give one, for "
            f"instance {splits[0]}"
        )
    return splits[0]


def _saved(path: Path, column: str | None) -> list[str]:
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

    kind = values.type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)):
        raise UsageError(f"{place}: the column {name} holds {kind}, expected texts; give --column another name")
    found = values.to_pylist()
    flat = found if inner is kind else [text for texts in found for text in texts or [None]]
    return ["" if text is None else text for text in flat]


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())
    return UsageError(
        f"{path} is damaged or incomplete ({reason[:150]}); copy it again, or give another file of prompts"
    )
