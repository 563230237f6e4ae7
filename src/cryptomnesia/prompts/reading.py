"""Prompts that were given as texts, as columns, or as a file or folder."""

import logging
import reprlib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.places import is_remote, local, place
from cryptomnesia.prompts.folders import folder
from cryptomnesia.prompts.formats import READERS

logger = logging.getLogger("cryptomnesia")


def read_prompts(path: Path | str, column: str | None = None) -> list[str]:
    """The prompts of a file, or of a folder with a data set, in their order.

    Blank prompts are left out, repeated ones are kept. The format is told from the ending: .txt has one prompt per
    line, .csv, .tsv and .parquet have a column of them, .jsonl and .json objects with a key. In a folder it is a data
    set as the Hugging Face library `datasets` has it.

    Args:
        path: of the file or folder.
        column: name of the column, or key, with the prompts; by default `prompt`, else `caption`, else `text`. A list
            of texts in it gives several prompts.

    Raises:
        UsageError: for a file that is missing, of another kind, not UTF-8, damaged, malformed, or without prompts.

    Example:
        prompts = read_prompts("captions.parquet", column="description")
    """
    try:
        # what reads prompts reads them from disks
        path = local(place(path))
        is_folder = path.is_dir()
    except (OSError, ValueError):
        raise UsageError(f"no prompts file {reprlib.repr(str(path))}; check the path") from None
    read = READERS.get(path.suffix.lower())
    if is_folder and path.suffix.lower() != ".txt":
        found = folder(path, column)
    elif read is None:
        raise UsageError(
            f"got prompts file {path}; expected a .txt, .csv, .tsv, .jsonl, .json or .parquet file, or the folder of a "
            "data set"
        )
    else:
        found = read(path, column)
    prompts = [prompt.strip() for prompt in found if prompt.strip()]
    if not prompts:
        raise UsageError(f"prompts file {path} holds no prompt; give at least one")
    # an empty line of a text is no prompt, an empty field of a table should perhaps be one
    if (blank := len(found) - len(prompts)) and path.suffix.lower() != ".txt":
        logger.warning("%s: %d of %d prompts are blank and left out", path, blank, len(found))
    for number, prompt in enumerate(prompts, start=1):
        check_text(prompt, f"prompts file {path}, prompt {number}")
    return prompts


def check_text(prompt: str, place: str) -> None:
    """Refuse a text that tokenizers and files cannot hold.

    Raises:
        UsageError: for bytes that are no text, half of a surrogate pair, or a NUL character.
    """
    # Python keeps the bytes of a command line that are no text in this way
    if any("\udc80" <= letter <= "\udcff" for letter in prompt):
        raise UsageError(f"{place} holds bytes that are not UTF-8, or half of a surrogate pair; write it as UTF-8")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UsageError(f"{place} holds half of a surrogate pair; write it out whole")
    if "\0" in prompt:
        raise UsageError(f"{place} holds a NUL character; take it out")


def captions_of(prompts: Any, column: str | None = None) -> list[str]:
    """Captions that were given as texts, or as a file.

    Args:
        prompts: the `Path` of a file or folder, or texts in an order: a list, a generator, a column of pandas or
            pyarrow.
        column: of the file.

    Raises:
        UsageError: for a file that cannot be read, or anything that is not a text.
    """
    if isinstance(prompts, Path) or is_remote(prompts):
        return read_prompts(prompts, column)
    if isinstance(prompts, Mapping | Set) or hasattr(prompts, "columns"):
        raise UsageError(
            f"got prompts of type {type(prompts).__name__}; give a list of texts, or one column of a table"
        )
    values = prompts.to_pylist() if hasattr(prompts, "to_pylist") else prompts
    if not isinstance(values, Iterable):
        raise UsageError(
            f"got prompts={reprlib.repr(prompts)}; give a text, a list of texts, or the Path of a prompts file"
        )
    captions = list(values)
    for caption in captions:
        if not isinstance(caption, str):
            raise UsageError(f"got {reprlib.repr(caption)} among the prompts; give texts only")
        check_text(caption, f"the prompt {reprlib.repr(caption)}")
    return [str(caption) for caption in captions]
