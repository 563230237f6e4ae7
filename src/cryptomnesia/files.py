"""Files that are written as a whole, and files that verdicts rest on: these have a version and a checksum."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import cryptomnesia
from cryptomnesia.errors import UnreachableError, UsageError
from cryptomnesia.places import exists, is_remote, local, make, place, read_text, settle, upload

_MAKE = {"calibration": "make one with `cryptomnesia calibrate`"}
"""Kind of a file → the way to make one, for messages."""


_UNFINISHED = ".unfinished"
"""How the name of a file ends that is being written."""

_LONGEST_NAME = 50
"""Letters of a file's name that are in the name of the unfinished one; 255 bytes are possible."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to another file in the same folder, which replaces `path` when the block ends without an error.

    So `path` is never half written, even if the process is killed or another one reads the file. Two threads or
    processes may write it at the same time; one of them wins. The file gets the permissions that the user's umask gives
    to new files. A link stays, and the file that it leads to is replaced. What is no file, `/dev/stdout` for instance,
    stays as well, and gets the content when the block ends, and so does a file in a store.

    Raises:
        OSError: with the path, if it cannot be written.
    """
    try:
        if is_remote(path):
            with TemporaryDirectory() as folder:
                whole = Path(folder, path.name)
                yield whole
                upload(whole, path)
            return
        if path.exists() and not path.is_file() and not path.is_dir():
            with TemporaryDirectory() as folder:
                whole = Path(folder, path.name)
                yield whole
                with whole.open("rb") as source, path.open("wb") as special:
                    copyfileobj(source, special)
            return
        with _renamed(Path(os.path.realpath(path))) as unfinished:
            yield unfinished
    except OSError as error:
        # a failed write does not say of which file
        if error.filename is None or str(error.filename).endswith(_UNFINISHED):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Write to another file beside `path`, which gets its name when the block ends without an error."""
    # a name of the greatest length leaves no room for more, and processes of two machines may have the same number
    unfinished = path.with_name(f"{path.name[:_LONGEST_NAME]}.{uuid4().hex}{_UNFINISHED}")
    try:
        # the block may delete the file and make a new one with other permissions
        unfinished.touch()
        permissions = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(permissions)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file as a whole; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def claim(path: Path, settings: dict[str, Any], other: str) -> None:
    """Make the folder of a file the folder of a run with these settings, or check that it is one.

    Args:
        path: of the file that holds the settings.
        settings: JSON values that a run must not change when it goes on.
        other: what the folder holds if its settings are others, in words.

    Raises:
        UsageError: if it holds a run with other settings, or cannot be written to.
    """
    text = json.dumps(settings, indent=2) + "\n"
    try:
        make(path.parent)
        if not exists(path):
            write_whole(path, text)
            settle(path)
        found = read_text(path)
    except OSError as error:
        raise UsageError(
            f"cannot write a run to {path.parent}: {error.strerror or error}; give another folder"
        ) from None
    if found == text:
        return
    try:
        before, now = dict(json.loads(found)), json.loads(text)
    except (ValueError, TypeError):
        raise UsageError(f"{path} does not hold the settings of a run; give an empty folder") from None
    changed = ", ".join(key for key in {**now, **before} if now.get(key) != before.get(key))
    # the same settings with other white space
    if not changed:
        return
    raise UsageError(
        f"{path.parent} holds {other}: {path} differs in {changed}; go on with the arguments of that run, or give an "
        "empty folder"
    )


def save_checked(path: str | Path, kind: str, version: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file as a whole, with its kind, its version and a checksum in the header.

    Args:
        path: of the file.
        kind: what the file is, for instance `calibration`.
        version: of the format of this kind of file.
        about: JSON values for the header.
        tensors: name → tensor on the CPU.

    Raises:
        UsageError: if the file cannot be written.
    """
    path = place(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    header = {"kind": kind, "format": version, "cryptomnesia": cryptomnesia.__version__, **about}
    header["content"] = _content(header, tensors)
    try:
        with replacing(path) as unfinished:
            save_file(tensors, unfinished, metadata={"about": json.dumps(header, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write {path} ({error}); give another place") from None


def load_checked(path: str | Path, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_checked` wrote.

    Raises:
        UsageError: for a file that is missing, of another kind or version, damaged, or edited.
    """
    path = place(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the file of a {kind}")
    try:
        with safe_open(local(path), framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        content, found, written = about.pop("content"), about["kind"], about["format"]
        unchanged = content == _content(about, tensors)
    except FileNotFoundError:
        raise UsageError(f"no {kind} file {path}; {_how_made(kind)}") from None
    except UnreachableError:
        raise
    # whatever a damaged file leads the readers to; the metadata may be any JSON, nested too deeply for instance
    except Exception as error:
        raise UsageError(f"{path} is not a {kind} ({_short(error)}); {_how_made(kind)}") from None
    if found != kind:
        raise UsageError(f"{path} is a {_short(found)}, not a {kind}; {_how_made(kind)}")
    if written != version:
        raise UsageError(f"{path} has {kind} format {_short(written)}, this version reads {version}; {_how_made(kind)}")
    if not unchanged:
        raise UsageError(f"{path} was damaged or edited after it was made; make it again")
    return about, tensors


def prompts_digest(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts in their order."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def _how_made(kind: str) -> str:
    """What to do about a file of a kind that cannot be used."""
    return _MAKE.get(kind, "make it again")


def _short(value: object) -> str:
    """A value as a text of one line that is not too long for a message."""
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def _content(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything in the file."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
