"""Files of weights, seen from outside: what they hold, and whether they are written to the end. No tensor is read.

A safetensors file begins with 8 bytes, the length of a JSON header that says where every tensor ends. So a file that is
still being written, or was cut off, is shorter than its own header says. Files of PyTorch are zip archives, whose
directory is written last.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 100 * 1024**2
"""Bytes of the longest header; the format allows no longer one."""

PICKLED = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files of PyTorch."""

UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".incomplete", ".unfinished", ".crdownload")
"""Endings of files and folders that get their name when they are complete."""

_NO_NETWORKS = frozenset({"scheduler", "tokenizer", "feature_extractor", "image_processor"})
"""Beginnings of the names of parts of a pipeline that have no weights."""


class UnfinishedError(Exception):
    """What is not written to the end, as a clause: `model.safetensors is shorter than its header says`."""


@dataclass(frozen=True)
class Header:
    """What a file of weights says of itself.

    Attributes:
        names: of its tensors; empty for a file of PyTorch, which would have to be unpickled.
        metadata: texts that whoever wrote it added.
    """

    names: frozenset[str]
    metadata: Mapping[str, str]


def header_of(file: Path) -> Header:
    """The header of a file of weights that is complete.

    Raises:
        UnfinishedError: if it is not.
    """
    try:
        if file.suffix.lower() in PICKLED:
            if not zipfile.is_zipfile(file):
                raise UnfinishedError(f"{file.name} ends too early")
            return Header(frozenset(), {})
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or not 2 <= length <= min(LONGEST, size - 8):
                raise UnfinishedError(f"{file.name} has no whole header")
            found = json.loads(opened.read(length))
        metadata = {str(name): str(value) for name, value in found.pop("__metadata__", {}).items()}
        end = max((int(tensor["data_offsets"][1]) for tensor in found.values()), default=0)
    except OSError as error:
        raise UnfinishedError(f"{file.name} cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise UnfinishedError(f"{file.name} has no header that can be read") from None
    if size < 8 + length + end:
        raise UnfinishedError(f"{file.name} is shorter than its header says")
    return Header(frozenset(found), metadata)


def json_of(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UnfinishedError: if there is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UnfinishedError(f"{file.name} is missing or incomplete")
    return found


def network_files(folder: Path) -> list[Path]:
    """The files of weights of a network in a folder, with its `config.json` and maybe in shards; all are complete.

    Raises:
        UnfinishedError: if anything is missing or incomplete.
    """
    json_of(folder / "config.json")
    for path in folder.iterdir():
        if path.name.endswith(UNFINISHED):
            raise UnfinishedError(f"{path.name} is still being written")
    files: list[Path] = []
    # the same weights may be there in both formats, and diffusers then reads the first
    for pattern in ("*.safetensors", "*.bin"):
        shards = {name for index in folder.glob(f"{pattern}.index.json") for name in _shards(index)}
        files = sorted({*folder.glob(pattern), *(folder / name for name in shards)})
        if files:
            break
    if not files:
        raise UnfinishedError(f"{folder.name} holds no weights yet")
    for file in files:
        header_of(file)
    return files


def pipeline_files(folder: Path) -> list[Path]:
    """The files of weights of a pipeline in a folder; all are complete.

    Raises:
        UnfinishedError: if anything is missing or incomplete.
    """
    index = json_of(folder / "model_index.json")
    parts = [name for name, given in index.items() if isinstance(given, list) and given and given[0] is not None]
    files = []
    for name in sorted(parts):
        if not (folder / name).is_dir():
            raise UnfinishedError(f"the folder {name} is missing")
        if not any(name.startswith(other) for other in _NO_NETWORKS):
            files += network_files(folder / name)
    return files


def _shards(index: Path) -> list[str]:
    """Names of the files that an index of shards lists."""
    listed = json_of(index).get("weight_map")
    if not isinstance(listed, Mapping):
        raise UnfinishedError(f"{index.name} is incomplete")
    return [str(name) for name in listed.values()]
