"""What a guarded service costs, and whether its books are right: docs/results/service.json.

    python benchmarks/service.py --minutes 5 > docs/results/service.json

The service of examples/service runs in this process, and a client sends it one request after the other. One request in
five has a memorized caption of the bundled model. The same prompt and seed are given to an unguarded pipeline right
before or after, in turns, so that whatever else the machine does affects both alike. Ctrl-C or SIGTERM ends the run
with the figures so far.

`seconds` and `evaluations`: per image, for traffic with 0%, 1% and 10% memorized captions. A request does not change
how long others take, so the figures of each traffic are those of the ordinary and the memorized requests of this run,
weighted by their shares. The service's seconds are those of its client, so there is no waiting for other clients in
them; the unguarded ones are a call of the pipeline and the encoding of the picture. One evaluation is one step of one
image with all its guidance branches.
`requests`: by kind of caption: how many, how many were flagged, and what became of those.
`books`: responses; responses that have no line in the verdict log, or more than one, or one that says something else;
lines without a response; unflagged pictures that are not, bit for bit, those of the unguarded pipeline.
`memory`: bytes of the process after the first `WARM` requests and at the end, each a median over `AROUND` requests.
`warned_after`: the number of images after which the service warned that too many are flagged; null if it did not.
"""

import argparse
import http.client
import io
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from common import print_json, progress
from PIL import Image

from cryptomnesia import FlagRate, guard, load_pipeline
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "service"))

import uvicorn
from bookkeeping import VerdictLog, read_log
from service import Server, Service, application

SHARES = (0.0, 0.01, 0.1)
"""Of memorized captions in the traffic."""

EVERY = 5
"""One request in so many has a memorized caption."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
FIRST_SEED = 6_000_000
CAPTIONS = 2_000
"""Ordinary captions; a longer run begins with the first one again, with another seed."""

WARM = 20
AROUND = 10


@dataclass
class Run:
    """What was seen.

    Attributes:
        responses: one dictionary per request.
        memory: bytes of the process after every request.
    """

    responses: list[dict[str, Any]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5, help="how long there are requests")
    minutes = parser.parse_args().minutes
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    pipe, plain = (load_pipeline("bundled", device="cpu") for _ in range(2))
    for each in (pipe, plain):
        each.set_progress_bar_config(disable=True)
    with TemporaryDirectory() as folder:
        log = Path(folder, "verdicts.jsonl")
        guarding = guard(pipe, policy="escalate")
        rate = FlagRate(len(guarding.calibration.others), window=1000)
        service = Service(pipe, guarding, VerdictLog(log), rate=rate)
        for each in (pipe, plain):
            # the first call of a process loads more than others
            each("a red circle", generator=torch.Generator().manual_seed(0))
        with served(service) as port:
            run = traffic(port, service, plain, minutes, stopped)
        figures = figures_of(run, list(read_log(log)))
    print_json({**figures, "threads": torch.get_num_threads()}, scheduler=type(plain.scheduler).__name__)


@contextmanager
def served(service: Service) -> Iterator[int]:
    """Serve HTTP in a thread; the port."""
    server = Server(uvicorn.Config(application(service), port=0, log_level="warning"), service)
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def traffic(port: int, service: Service, plain: Any, minutes: float, stopped: Event) -> Run:
    """Ask the service and the unguarded pipeline for the same images in turns, until the end or a signal."""
    manifest = Manifest.load(BUNDLE)
    planted = cycle([e.captions[0] for e in manifest.counted if e.exposures == manifest.top])
    ordinary = cycle(manifest.control_captions("evaluation", CAPTIONS))
    unguarded = Unguarded(plain)
    run = Run()
    begin = time.monotonic()
    with progress() as start:
        tell = start("seconds", int(60 * minutes))
        while (passed := time.monotonic() - begin) < 60 * minutes and not stopped.is_set():
            number = len(run.responses)
            memorized = number % EVERY == EVERY // 2
            prompt, seed = next(planted if memorized else ordinary), FIRST_SEED + number
            found: dict[str, Any] = {"memorized": memorized, "seed": seed}
            # one block in each order, so that memorized captions come in both
            for guarded in (True, False) if number // EVERY % 2 else (False, True):
                found |= asked(port, prompt, seed) if guarded else unguarded(prompt, seed)
            found["same"] = np.array_equal(found.pop("picture"), found.pop("plain_picture"))
            found["warned"] = service.counters["flag_rate_warnings"] > 0
            run.responses.append(found)
            run.memory.append(resident())
            tell(passed)
    return run


def asked(port: int, prompt: str, seed: int) -> dict[str, Any]:
    """A response of the service."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/images", json.dumps({"prompt": prompt, "seed": seed}))
    response = connection.getresponse()
    body = response.read()
    seconds = time.perf_counter() - begin
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"got status {response.status}: {body.decode()}")
    told = {name: response.headers[f"X-{name}"] for name in ("Image", "Seed", "Verdict", "Action")}
    return {"seconds": seconds, "told": told, "picture": np.asarray(Image.open(io.BytesIO(body)))}


class Unguarded:
    """The pipeline without a guard, as a service without one would call it."""

    def __init__(self, pipe: Any) -> None:
        """Count its evaluations from now on."""
        self._pipe = pipe
        self._setup = Setup.of(pipe, {})
        self._count = 0
        self._setup.family.module.register_forward_hook(self._evaluated)

    def _evaluated(self, _: Any, __: Any, ___: Any) -> None:
        self._count += 1

    def __call__(self, prompt: str, seed: int) -> dict[str, Any]:
        """An image."""
        self._count = 0
        begin = time.perf_counter()
        image = self._pipe(prompt, generator=torch.Generator().manual_seed(seed)).images[0]
        image.save(io.BytesIO(), format="PNG")
        seconds = time.perf_counter() - begin
        return {"plain_seconds": seconds, "plain_evaluations": self._count, "plain_picture": np.asarray(image)}


def resident() -> int:
    """Bytes of this process in memory; Linux tells."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def figures_of(run: Run, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures."""
    logged = {line["image"]: line for line in lines}
    rows = [{**row, "line": logged.get(row["told"]["Image"], {})} for row in run.responses]
    kinds = {
        name: [row for row in rows if row["memorized"] == memorized and row["line"]]
        for name, memorized in {"ordinary": False, "memorized": True}.items()
    }
    return {
        "requests": {
            name: {
                "count": len(kind),
                "flagged": sum(row["line"]["flagged"] for row in kind),
                "actions": dict(Counter(row["line"]["action"] for row in kind if row["line"]["flagged"])),
            }
            for name, kind in kinds.items()
        },
        "seconds": by_share(kinds, lambda row: row["seconds"], lambda row: row["plain_seconds"]),
        "evaluations": by_share(kinds, lambda row: row["line"]["evaluations"], lambda row: row["plain_evaluations"]),
        "books": books(rows, lines),
        "memory": memory(run.memory),
        "warned_after": next((number for number, row in enumerate(rows, start=1) if row["warned"]), None),
    }


def by_share(kinds: dict[str, list[dict[str, Any]]], guarded: Any, plain: Any) -> dict[str, Any]:
    """By share of memorized captions: the distribution with the guard and without."""
    found: dict[str, Any] = {}
    for share in SHARES:
        weights = {"ordinary": 1 - share, "memorized": share}
        if any(weight and not kinds[name] for name, weight in weights.items()):
            continue
        found[f"{share:g}"] = {
            name: distribution({kind: ([value(row) for row in kinds[kind]], weights[kind]) for kind in kinds})
            for name, value in {"guarded": guarded, "unguarded": plain}.items()
        }
    return found


def distribution(kinds: dict[str, tuple[list[float], float]]) -> dict[str, float]:
    """Quantiles and mean of values of several kinds, each with the weight of its kind in all."""
    values = np.concatenate([values for values, _ in kinds.values()])
    weights = np.concatenate([np.full(len(values), weight / max(1, len(values))) for values, weight in kinds.values()])
    order = values.argsort()
    reached = weights[order].cumsum()
    # rounding must not push a quantile past the last value of its kind
    places = {name: int(np.searchsorted(reached, share - 1e-9)) for name, share in QUANTILES.items()}
    found = {name: float(values[order][place]) for name, place in places.items()}
    return {**found, "mean": float(values @ weights)}


def books(rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> dict[str, int]:
    """What is wrong in the verdict log."""
    times = Counter(line["image"] for line in lines)
    told = [row["told"] for row in rows]
    return {
        "responses": len(rows),
        "without_one_line": sum(times[one["Image"]] != 1 for one in told),
        "other_line": sum(
            (one["Verdict"], one["Action"], one["Seed"]) != (line["answer"], line["action"], str(line["seed"]))
            for one, line in ((row["told"], row["line"]) for row in rows)
            if line
        ),
        "lines_without_response": len(times.keys() - {one["Image"] for one in told}),
        "unflagged": sum(row["told"]["Verdict"] == "ordinary" for row in rows),
        "unflagged_but_other_picture": sum(row["told"]["Verdict"] == "ordinary" and not row["same"] for row in rows),
    }


def memory(resident: list[int]) -> dict[str, int] | None:
    """Bytes of the process at the begin and at the end; None for a run that is too short."""
    if len(resident) < WARM + AROUND:
        return None
    warm = resident[WARM:]
    return {"begin": int(np.median(warm[:AROUND])), "end": int(np.median(warm[-AROUND:])), "requests": len(warm)}


if __name__ == "__main__":
    main()
