"""Prompts from folders, as the Hugging Face library `datasets` has them."""

from collections.abc import Sequence
from pathlib import Path

from cryptomnesia.errors import UsageError
from cryptomnesia.prompts.formats import READERS
from cryptomnesia.prompts.tables import parquet, saved

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files with the captions of a folder of pictures."""


def folder(path: Path, column: str | None) -> list[str]:
    """The prompts of a folder.

    It may be one that `Dataset.save_to_disk` wrote, a folder of pictures with `metadata.jsonl`, `.csv` or `.parquet`,
    or a clone of a data set from the hub with Parquet files. A folder with several splits is refused.

    Raises:
        UsageError: if it holds no prompts, or several splits of which one has to be named.
    """
    if (path / "state.json").is_file():
        return saved(path, column)
    splits = sorted(found.parent for found in path.glob("*/state.json"))
    splits = splits or sorted({found.parent for name in _METADATA for found in path.glob(f"*/{name}")})
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
