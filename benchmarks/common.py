"""What the benchmarks share: progress, JSON, and what an interrupted run need not make again."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from cryptomnesia.files import load_checked, save_checked

CACHE = Path(".benchmarks-cache")
"""Delete it after a change of the code that generates."""

Tell = Callable[[float], None]
"""Called with how much is done."""

Start = Callable[[str, int], Tell]
"""Called with what begins and how much of it there is."""


@contextmanager
def progress() -> Iterator[Start]:
    """Bars on standard error, none when that is not a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:

        def start(what: str, total: int) -> Tell:
            task = bar.add_task(what, total=total)
            return lambda done: bar.update(task, completed=done)

        yield start


def print_json(figures: dict[str, Any]) -> None:
    """Print figures as JSON, with null for NaN."""
    sys.stdout.write(json.dumps(_known(figures), indent=2) + "\n")


def place(name: str, **decides: Any) -> Path:
    """The file in `CACHE` for something that depends on nothing but the JSON values `decides`."""
    CACHE.mkdir(exist_ok=True)
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return CACHE / f"{name.replace(' ', '-')}-{digest[:16]}.safetensors"


def kept(
    name: str, make: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]], **decides: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON values and tensors that `make` gives, or those that an earlier run saved under the same `decides`."""
    path = place(name, **decides)
    if not path.exists():
        save_checked(path, "benchmark", 1, *make())
    return load_checked(path, "benchmark", 1)


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and value != value else value
