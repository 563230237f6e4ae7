"""What users bring: situations, broken files, families and solvers.

    python benchmarks/robustness.py [--inputs N] > robustness.json && mv robustness.json docs/results

Three parts. The tests of the situations that users reported run one by one: a failed assertion counts as a silent error
and any other exception as a traceback. The readers of files and the command line get N broken inputs, made from valid
ones. Every model family is tried with every solver that solves its model.

About 10 minutes on two cores. docs/results/robustness.md and the tables of families show the figures.
"""

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from common import print_json, progress

ROOT = Path(__file__).resolve().parent.parent

SITUATIONS = {
    "guards and copies of pipelines": ["guarding"],
    "what a fingerprint has to know": [
        "pipelines/test_fingerprint*.py",
        "pipelines/test_alterations.py",
        "pipelines/test_observers.py",
        "pipelines/test_tiling.py",
        "tracing/test_offloading.py",
    ],
    "what a call gives the network": ["pipelines/test_inputs.py", "pipelines/test_call.py"],
    "noise levels of solvers": ["pipelines/test_solvers.py"],
    "families": ["pipelines/test_*famil*.py", "pipelines/test_caches.py", "pipelines/test_vouching.py"],
    "training pictures": ["matching", "test_decoding.py"],
    "loading": ["pipelines/test_load*.py", "pipelines/test_adapters.py"],
    "prompts": ["prompts", "tracing/test_generation.py"],
    "references": ["calibration"],
    "command line": ["cli"],
}
"""Area → the tests of its situations."""


class Tally:
    """A plug-in of pytest that counts what became of every test."""

    def __init__(self) -> None:
        """Begin to count."""
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Count a test that was called, or that failed before or after."""
        outcome = yield
        report = outcome.get_result()
        if report.failed and call.excinfo is not None:
            silent = issubclass(call.excinfo.type, AssertionError | pytest.fail.Exception)
            self.counts["silent_errors" if silent else "tracebacks"] += 1
            self.failed.append(item.nodeid)
        if report.when == "call" and not report.skipped:
            self.counts["tried"] += 1


def situations(patterns: list[str]) -> dict[str, Any]:
    """Run the tests of an area, and count."""
    files = [str(path) for pattern in patterns for path in sorted((ROOT / "tests").glob(pattern))]
    tally = Tally()
    # what the tests print is no result
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        pytest.main(["-q", "-p", "no:cacheprovider", "-n", "0", "--rootdir", str(ROOT), *files], plugins=[tally])
    finally:
        os.dup2(saved, 1)
    return {"tried": 0, "silent_errors": 0, "tracebacks": 0, **tally.counts, "failed": tally.failed}


def compatibility(name: str) -> dict[str, dict[str, str]]:
    """Solver → verb → what became of it, for one family case."""
    import torch

    from compatibility import outcomes, solvers_for

    torch.set_num_threads(1)
    return {solver: outcomes(name, solver) for solver in solvers_for(name)}


def main() -> None:
    """Print all figures as JSON."""
    parser = argparse.ArgumentParser(description="What users bring: situations, broken files, families and solvers.")
    parser.add_argument("--inputs", type=int, default=12_000, help="broken inputs; at least 10,000 for the results")
    wanted = parser.parse_args().inputs
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    from compatibility import CASES
    from fuzzing import fuzz

    with progress() as start:
        tell = start("families", len(CASES))
        matrix = {}
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for done, (name, found) in enumerate(zip(CASES, pool.map(compatibility, CASES), strict=True), start=1):
                matrix[name] = found
                tell(done)
        tell = start("situations", len(SITUATIONS))
        areas = {}
        # a process per area, because tests change settings of the process
        with ProcessPoolExecutor(os.cpu_count(), max_tasks_per_child=1, mp_context=get_context("spawn")) as pool:
            results = pool.map(situations, SITUATIONS.values())
            for done, (area, found) in enumerate(zip(SITUATIONS, results, strict=True), start=1):
                areas[area] = found
                tell(done)
        broken = fuzz(examples=wanted, seed=0)
    verbs = [outcome for solvers in matrix.values() for found in solvers.values() for outcome in found.values()]
    wrong = sum(outcome.startswith("wrong") for outcome in verbs)
    print_json(
        {
            "situations_tried": sum(area["tried"] for area in areas.values()) + len(verbs),
            "inputs_fuzzed": broken["inputs"],
            "tracebacks": sum(area["tracebacks"] for area in areas.values()) + broken["tracebacks"],
            "silent_errors": sum(area["silent_errors"] for area in areas.values()) + wrong + broken["wrong"],
            "areas": areas,
            "fuzzing": broken,
            "compatibility": matrix,
        }
    )


if __name__ == "__main__":
    main()
