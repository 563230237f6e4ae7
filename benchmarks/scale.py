"""Audits on Ray: what survives kills, and what the driver takes of a million prompts: docs/results/scale.json.

    python benchmarks/scale.py > docs/results/scale.json

All machines of the cluster are processes of this one.

`faults`: an audit of a random miniature, `PROMPTS` prompts and 102 references in batches of two, while processes,
machines and the command itself are killed (`faults.py`). `faults_survived`: the kills after which the run was finished
all the same. `units_lost`, `units_doubled`: images of the finished run that are missing or there twice, and
`units_differing`, whose row is not bit by bit that of the same audit in one process without kills.

`simulation`: `UNITS` prompts in batches of `BATCH`. A batch sleeps for a second in place of the denoiser, and is then
written as a real one is, with five norms of 51 evaluations an image, by `SLEEPERS` processes; the driver's code is that
of an audit. A process knows its batch and no more: a real one holds the model and the list of prompts besides.
`memory_ratio`: the driver's resident memory when all are done, divided by that after the first `EARLY` prompts.
`seconds_per_100000`: of the first and of the last tenth of the prompts. `driver_share`: processor seconds of the
driver per second and per 16 processes, over the whole run. `driver_share_of_16`: the same where there are 16 processes,
during `SHORT` batches; what the driver does when nothing happens weighs more there.
"""

import logging
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import CACHE, Start, print_json, progress
from faults import audit_under_fire

from cryptomnesia import audit
from cryptomnesia.auditing.audited import spread
from cryptomnesia.auditing.outcome import IMAGES
from cryptomnesia.auditing.store import Store, batch_count
from cryptomnesia.engine import OnRay

PROMPTS = 100
FAULTS = 24
UNITS = 1_000_000
BATCH = 32
EARLY = 10_000
SLEEPERS = 40
SHORT = 1_600
EVALUATIONS = 51


def main() -> None:
    """Measure and print JSON."""
    with progress() as start:
        figures = {"faults": faults(start), "simulation": simulation(start)}
    flat = {key: value for part in figures.values() for key, value in part.items()}
    print_json(flat)


def faults(start: Start) -> dict[str, Any]:
    """An audit under fire, compared with one without."""
    from cryptomnesia.testing.miniatures import stable_diffusion

    work = CACHE.absolute() / "scale"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stable_diffusion().save_pretrained(work / "tiny")
    (work / "references.txt").write_text("\n".join(f"a red circle {number}" for number in range(102)))
    (work / "prompts.txt").write_text("\n".join(f"a blue star {number}" for number in range(PROMPTS)))
    settings: dict[str, Any] = {
        "prompts": work / "prompts.txt",
        "references": work / "references.txt",
        "steps": 3,
        "guidance": 2.0,
        "detector": "drift",
        "fpr": 0.5,
        "batch_size": 2,
    }
    expected = audit(str(work / "tiny"), output=work / "alone", **settings).rows(IMAGES)
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    counts = audit_under_fire([str(work / "tiny"), *flags], work / "killed", FAULTS, tell=start("kills", FAULTS))
    rows = Store(work / "killed").rows(IMAGES)
    found = Counter((row["prompt"], row["seed"]) for row in rows)
    wanted = {(row["prompt"], row["seed"]): str(row) for row in expected}
    return {
        "faults_survived": sum(counts.values()),
        "faults_by_kind": counts,
        "units": len(wanted),
        "units_lost": len(wanted.keys() - found.keys()),
        "units_doubled": sum(count - 1 for count in found.values()),
        "units_differing": sum(str(row) != wanted[row["prompt"], row["seed"]] for row in rows),
    }


@dataclass
class Sleeping:
    """The work of an audit whose denoiser sleeps."""

    folder: Path

    def __call__(self, unit: tuple[str, int]) -> None:
        """Sleep for a second, and write a batch."""
        stage, number = unit
        time.sleep(1)
        draws = np.random.default_rng(number)
        rows = [
            {
                "prompt": prompt(number * BATCH + row),
                "seed": number * BATCH + row,
                **{
                    f"norm:{name}": draws.random(EVALUATIONS).tolist()
                    for name in ("delta", "z", "x0", "cond", "uncond")
                },
                "image": f"assets/00/{number:064x}.png",
            }
            for row in range(BATCH)
        ]
        # the run's own description holds every prompt, of which a batch needs none
        store = Store.__new__(Store)
        store.folder = self.folder
        store.write(stage, number, rows)


def prompt(number: int) -> str:
    """A prompt of ordinary length."""
    return f"a picture of a grey cat and a red chair in a room with two windows, number {number}"


def simulation(start: Start) -> dict[str, Any]:
    """A million prompts, and the driver's part in it."""
    folder = CACHE.absolute() / "scale-simulation"
    run = sleeping(folder, SLEEPERS, UNITS, start(f"prompts by {SLEEPERS} processes", UNITS))
    short = sleeping(folder, 16, SHORT * BATCH, start("prompts by 16 processes", SHORT * BATCH))
    shutil.rmtree(folder, ignore_errors=True)
    early = next(mark for mark in run if mark[0] >= EARLY)
    last = run[-1]

    def seconds(first: int, to: int) -> float:
        begin, end = (next(mark for mark in run if mark[0] >= count) for count in (first, to))
        return 100_000 * (end[1] - begin[1]) / (end[0] - begin[0])

    return {
        "prompts": UNITS,
        "batch": BATCH,
        "processes": SLEEPERS,
        "memory_ratio": last[3] / early[3],
        "memory_mib": {"early": early[3] / 2**20, "last": last[3] / 2**20},
        "seconds": last[1],
        "seconds_per_100000": {
            "first": seconds(EARLY, EARLY + UNITS // 10),
            "last": seconds(UNITS - UNITS // 10, UNITS),
        },
        "driver_share": last[2] / last[1] / (SLEEPERS / 16),
        "driver_share_of_16": short[-1][2] / short[-1][1],
        "cores": os.cpu_count(),
    }


def sleeping(folder: Path, processes: int, units: int, tell: Any) -> list[tuple[int, float, float, int]]:
    """Prompts done, seconds, processor seconds and resident bytes of the driver, some hundred times during a run."""
    import ray

    shutil.rmtree(folder, ignore_errors=True)
    ray.init(num_cpus=processes, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    store = Store.create(folder, {"prompts": [prompt(number) for number in range(units)]})
    marks: list[tuple[int, float, float, int]] = []
    with OnRay(Sleeping(folder), gpu=False) as do:
        # until every process has started
        list(do((IMAGES, number) for number in range(2 * processes)))
        shutil.rmtree(folder / IMAGES)
        began, used = time.monotonic(), time.process_time()

        def mark(_stage: str, done: float, _total: int) -> None:
            if not marks or done - marks[-1][0] >= units / 500 or done >= units:
                marks.append((int(done), time.monotonic() - began, time.process_time() - used, resident()))
                tell(done)

        spread(do, store, IMAGES, batch_count(units, BATCH), units, size=BATCH, progress=mark)
    ray.shutdown()
    if store.done(IMAGES) != batch_count(units, BATCH):
        raise RuntimeError(f"{store.done(IMAGES)} of {batch_count(units, BATCH)} batches are there")
    return marks


def resident() -> int:
    """The bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    if sys.argv[1:] == ["small"]:
        UNITS, SHORT, SLEEPERS, FAULTS = 40_000, 160, 24, 1
    main()
