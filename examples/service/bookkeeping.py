"""What the service keeps of its images: a log with one line per image, and counters."""

import hashlib
import json
import math
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from cryptomnesia import FlagRate, Verdict

QUANTILES = (0.5, 0.95, 0.99)
"""Of the seconds of the newest images."""

COUNTED = {
    "images": "Images that were made.",
    "flagged": "Images that were flagged.",
    "unjudged": "Images that could not be judged.",
    "mitigated": "Images that were returned under a mitigation.",
    "regenerated": "Images that were returned from another seed.",
    "withheld": "Images in whose place a black one was returned.",
    "refused": "Requests that were answered by an error.",
    "abandoned": "Requests whose client went away before an answer.",
    "flag_rate_warnings": "Warnings that the share of flagged images is not as promised.",
}
"""What is counted, and in what words."""


class VerdictLog:
    """A file of JSON lines that is only ever added to.

    A line is handed to the operating system in one piece before its image is returned, so a killed process loses none.
    A line that a power failure or a full disk cut short stays as it is: the next one begins on a line of its own, and
    `read_log` passes over what is no JSON. Only the owner may read the file.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            OSError: if it cannot be written.
        """
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._file).st_size
        self._whole = size == 0 or os.pread(self._file, 1, size - 1) == b"\n"

    def append(self, line: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: if it cannot be written as a whole.
        """
        data = (b"" if self._whole else b"\n") + json.dumps(line, allow_nan=False).encode() + b"\n"
        self._whole = False
        if os.write(self._file, data) < len(data):
            raise OSError("the disk is full")
        self._whole = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; what a power failure cut short is passed over."""
    for line in path.read_bytes().split(b"\n"):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def log_line(image: str, prompt: str, seed: int, verdict: Verdict, *, prompts: bool, **more: Any) -> dict[str, Any]:
    """The line of one image, as JSON values; NaN becomes null.

    Args:
        image: its identifier.
        prompt: as it was asked for.
        seed: of its noise.
        verdict: on the image.
        prompts: whether prompts are logged. If not, there is their SHA-256 instead, and what may quote their words is
            left out: the verdict's reason, and the dropped words, of which the number is kept.
        **more: further values.
    """
    found = asdict(verdict)
    del found["image"], found["prompt"]
    if not prompts:
        del found["reason"]
        found["dropped"] = len(verdict.dropped)
    digest = {"prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "image": image,
        **({"prompt": prompt} if prompts else digest),
        "seed": seed,
        "answer": verdict.answer,
        **found,
        **more,
    }
    line["retried"] = [_number(p_value) for p_value in verdict.retried]
    return {name: _number(value) for name, value in line.items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Counters:
    """Counts images and their verdicts, and writes them in the text format of Prometheus."""

    def __init__(self, newest: int = 1000) -> None:
        """Count from zero, with quantiles of the seconds of the `newest` images."""
        self._counts: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=newest)
        self._sum = 0.0
        self._lock = Lock()

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def add(self, name: str) -> None:
        """Count one."""
        with self._lock:
            self._counts[name] += 1

    def image(self, verdict: Verdict, seconds: float) -> None:
        """Count an image that took so many seconds."""
        with self._lock:
            self._counts["images"] += 1
            self._counts["flagged"] += verdict.flagged
            self._counts["unjudged"] += not (verdict.flagged or verdict.clean)
            if verdict.action in COUNTED:
                self._counts[verdict.action] += 1
            self._seconds.append(seconds)
            self._sum += seconds

    def text(self, rate: FlagRate, waiting: int) -> str:
        """Everything as Prometheus reads it."""
        with self._lock:
            counts, seconds, total = Counter(self._counts), list(self._seconds), self._sum
        lines = []
        for name, what in COUNTED.items():
            full = f"cryptomnesia_{name}_total"
            lines += [f"# HELP {full} {what}", f"# TYPE {full} counter", f"{full} {counts[name]}"]
        name = "cryptomnesia_image_seconds"
        lines += [f"# HELP {name} Seconds of making an image, without waiting.", f"# TYPE {name} summary"]
        if seconds:
            values = zip(QUANTILES, np.quantile(seconds, QUANTILES), strict=True)
            lines += [f'{name}{{quantile="{share}"}} {value:.6g}' for share, value in values]
        lines += [f"{name}_sum {total:.6g}", f"{name}_count {counts['images']}"]
        gauges = {
            "waiting": ("Requests that wait or are worked on.", waiting),
            "flag_rate_window": ("Judged images among the newest.", rate.seen_images),
            "flag_rate_flagged": ("Flagged images among them.", rate.flagged),
            "flag_rate_many": ("1 if these are more than promised.", int(rate.state == "many")),
            "flag_rate_few": ("1 if these are fewer than promised.", int(rate.state == "few")),
        }
        for name, (what, value) in gauges.items():
            full = f"cryptomnesia_{name}"
            lines += [f"# HELP {full} {what}", f"# TYPE {full} gauge", f"{full} {value}"]
        return "\n".join(lines) + "\n"
