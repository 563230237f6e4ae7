"""What the benchmarks share: progress, JSON, and a cache with which an interrupted run goes on."""

import hashlib
import json
import math
import os
import subprocess
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


def print_json(figures: dict[str, Any], *, output: str | None = None, **more: Any) -> None:
    """Print figures as JSON, with null for NaN, and with the command and the commit that made them.

    Args:
        figures: to print.
        output: the file that the output is meant for; by default the one in docs/results that has the script's name.
        **more: what else to say of how they were made, for instance the class of the solver as `scheduler`.
    """
    script = Path(sys.argv[0])
    output = output or f"docs/results/{script.stem}.json"
    made_by = {
        "command": " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:], ">", output]),
        "commit": COMMIT,
        **more,
    }
    sys.stdout.write(json.dumps(_without_nan({"made_by": made_by, **figures})) + "\n")


def _commit() -> str:
    """The commit that is checked out, with a + behind it if the code differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    # results and pictures are what benchmarks write
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


COMMIT = os.environ.get("COMMIT") or _commit()
"""As it was when the benchmark began. In a copy without git, the environment variable `COMMIT` names it."""


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


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
