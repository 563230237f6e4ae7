"""Draws inputs, feeds them to the readers, and counts what happened."""

import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from cryptomnesia.errors import CryptomnesiaError
from fuzzing.areas import AREAS
from fuzzing.command_lines import Wrong
from fuzzing.samples import Samples

SHOWN = 20
"""Inputs that went wrong of which the error is kept."""


@dataclass
class Counts:
    """What happened to the inputs.

    Attributes:
        inputs: how many were tried.
        used: how many gave a valid result.
        refused: how many were refused, by the first words of the message.
        tracebacks: how many raised another error.
        wrong: how many gave a result, message or exit code that must not be.
        failures: for the first of the last two kinds, what happened.
    """

    inputs: int = 0
    used: int = 0
    refused: Counter = field(default_factory=Counter)
    tracebacks: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)

    def to_json(self):
        """The numbers, as JSON values."""
        return {
            "inputs": self.inputs,
            "used": self.used,
            "refused": sum(self.refused.values()),
            "kinds_of_refusal": len(self.refused),
            "tracebacks": self.tracebacks,
            "wrong": self.wrong,
        }

    def add(self, other: "Counts") -> None:
        """Add the numbers of others."""
        self.inputs += other.inputs
        self.used += other.used
        self.refused += other.refused
        self.tracebacks += other.tracebacks
        self.wrong += other.wrong
        self.failures += other.failures


def fuzz(examples: int = 10_000, seed: int = 0, *, samples: Samples | None = None) -> dict[str, Any]:
    """Try about `examples` inputs in all areas together, an equal number in each but the command line, which is slow.

    Args:
        examples: inputs in all.
        seed: the same samples and seed give the same inputs.
        samples: valid files to start from, made in a temporary folder when None.

    Returns:
        The numbers of `Counts.to_json`, and under `areas` the same for every area; `failures` says what went wrong.
    """
    with ExitStack() as stack:
        if samples is None:
            samples = Samples.make(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        total = sum(area.weight for area in AREAS.values())
        found = {
            name: fuzz_area(name, max(1, math.ceil(examples * area.weight / total)), seed, samples)
            for name, area in AREAS.items()
        }
    everything = Counts()
    for counts in found.values():
        everything.add(counts)
    areas = {name: counts.to_json() for name, counts in found.items()}
    return {**everything.to_json(), "areas": areas, "failures": everything.failures}


def fuzz_area(name: str, examples: int, seed: int, samples: Samples) -> Counts:
    """Try inputs of one area."""
    area, counts = AREAS[name], Counts()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        try_one = area.prepare(samples, place, stack)

        @hypothesis.seed(seed)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(area.inputs(samples))
        def run(given_input):
            counts.inputs += 1
            _count(counts, try_one, given_input)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hypothesis.errors.NonInteractiveExampleWarning)
            run()
    return counts


def _count(counts: Counts, try_one: Callable, given_input) -> None:
    """Try an input, and count what happens."""
    try:
        refusal = try_one(given_input)
    except CryptomnesiaError as error:
        refusal = str(error)
    except Wrong as error:
        counts.wrong += 1
        _keep(counts, f"wrong: {error}", given_input)
        return
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        counts.tracebacks += 1
        _keep(counts, f"{type(error).__name__}: {error}", given_input, error)
        return
    if refusal is None:
        counts.used += 1
    elif "\n" in refusal.strip() or not refusal.strip():
        counts.wrong += 1
        _keep(counts, f"no message of one line: {refusal!r}", given_input)
    else:
        counts.refused[_kind(refusal)] += 1


def _kind(refusal: str) -> str:
    """The words of a message without what differs from input to input."""
    words = [word for word in refusal.split() if word.isalpha()]
    return " ".join(words[:6])


def _keep(counts: Counts, what: str, given_input, error=None) -> None:
    if len(counts.failures) < SHOWN:
        place = ""
        if error is not None:
            trace = error.__traceback__
            while trace.tb_next is not None:
                if "cryptomnesia" in trace.tb_frame.f_code.co_filename:
                    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
                trace = trace.tb_next
        counts.failures.append(f"{what[:300]}{place}; input {repr(given_input)[:400]}")
