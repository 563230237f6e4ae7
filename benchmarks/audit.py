"""A whole audit of the bundled model: docs/results/audit.json.

    python benchmarks/audit.py > docs/results/audit.json
    python benchmarks/audit.py --keep-times > docs/results/audit.json   # of the file that is committed

Training images: those that `cryptomnesia proving-ground images` writes, the planted ones and `OTHERS`. Prompts: every
wording of the top rung, two wordings of every concept of the lower rungs, every wording of the hard negatives, and
captions that were never planted. `seconds` is the wall time of the run with `WORKERS` processes, from settings to
scores, with all loading; `index_seconds` is that of the index, which is made before. `methods` names the methods, which
are the defaults.

`confirmed_recall`: of the top rung's generations that reproduce the planted pixels (by `replicates`, which knows the
truth), the share that is confirmed; `confirmed_recall_without_mask`: the share that is confirmed by the whole picture
alone. Both also by kind. `false_confirmed`: the share of images of captions without a planted picture that are
confirmed, and by kind; `false_confirmed_captions` counts the captions. Intervals (95%) redraw whole concepts and
captions. `levels`: images by kind and level of evidence.

`throughput_ratio`: the time of three separate programs for detection, localization and mitigation, divided by that of
an audit of the same prompts by the same methods. The programs handle one image at a time, and each generates for
itself; localization and mitigation get only what detection flagged. `throughput_ratio_every_image`: the same where all
three programs get every image. Loading counts for the audit only, and so does the comparison with training images.
`throughput_two_workers`: the time of the same audit by one process, divided by that by two. Medians over rounds, every
round with other prompts, with the least and the greatest.
"""

import argparse
import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import CACHE, Start, print_json, progress
from PIL import Image
from stability import by

from cryptomnesia import Guard, ImageIndex, Store, audit, load_pipeline
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import resolved
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.localizers import localizer as localizer_of
from cryptomnesia.localizers.mapping import mapped
from cryptomnesia.matching import Tiles
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.images import write_training_images
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.statistics import rate as share
from cryptomnesia.tracing.generation import generate

OTHERS = 10_000
PROMPTS = 400
SEEDS = 2
LADDER_WORDINGS = 2
WORKERS = 2
ROUNDS = 3
PART = 64
"""Prompts of a round: four batches, of which two processes can take two each."""
DETECTOR = "auto"
TIMES = ("seconds", "throughput_ratio", "throughput_ratio_every_image", "throughput_two_workers")
"""The figures of time."""
RATE = 0.01
SEED = 9_000_000
"""Seed of the first image. The rule of a match was developed on images of other seeds and other ordinary captions."""
EARLIER = 1_000
"""Ordinary captions that other benchmarks judge."""


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description="A whole audit of the bundled model.")
    parser.add_argument("--keep-times", action="store_true", help="keep the figures of time that are committed")
    earlier: dict[str, Any] = {}
    if parser.parse_args().keep_times:
        # the shell has emptied the file already
        command = ["git", "show", "HEAD:docs/results/audit.json"]
        earlier = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    pipe = load_pipeline("bundled", device="cpu")
    with progress() as start:
        figures = measure(pipe, start, with_times=not earlier)
    figures |= {name: earlier[name] for name in TIMES if earlier}
    made_by = earlier.get("made_by", {})
    times = {"times": made_by.get("times", made_by["commit"])} if earlier else {}
    print_json(figures, scheduler=type(pipe.scheduler).__name__, **times)


def measure(pipe: Any, start: Start, *, with_times: bool) -> dict[str, Any]:
    """All figures, perhaps without those of time."""
    manifest = Manifest.load(BUNDLE)
    # the run stores paths, which have to hold in other processes
    work = CACHE.absolute() / "audit"
    work.mkdir(parents=True, exist_ok=True)
    ground, tell = ground_of(manifest.ground), start("training images", OTHERS)
    write_training_images(ground, work / "training", OTHERS, progress=tell)
    index_seconds, indexed = indexing(work)
    prompts = chosen(manifest)
    began = time.perf_counter()
    store = fresh_audit(list(prompts), work, WORKERS, start, SEEDS)
    seconds = time.perf_counter() - began
    return {
        "prompts": len(prompts),
        "images": SEEDS * len(prompts),
        "workers": WORKERS,
        "index_seconds": index_seconds,
        "indexed": indexed,
        "methods": store.about["methods"],
        "seconds": seconds,
        **evidence(store, manifest, prompts),
        **(throughput(pipe, prompts, work, start) if with_times else {}),
        "rounds": ROUNDS,
        "prompts_per_round": PART,
    }


def indexing(work: Path) -> tuple[float, int]:
    """The seconds that a new index takes, and the number of its pictures."""
    shutil.rmtree(work / "index", ignore_errors=True)
    began = time.perf_counter()
    index = ImageIndex.build(work / "training", work / "index", Tiles())
    return time.perf_counter() - began, len(index)


def chosen(manifest: Manifest) -> dict[str, Entry | None]:
    """Prompt → its concept."""
    planned: dict[str, Entry | None] = {}
    for entry in manifest.entries:
        every = not entry.planted or entry.exposures == manifest.top
        planned |= dict.fromkeys(entry.captions[: None if every else LADDER_WORDINGS], entry)
    count = EARLIER + PROMPTS - len(planned)
    ordinary = manifest.control_captions("evaluation", count)[EARLIER:]
    return planned | dict.fromkeys(ordinary)


def fresh_audit(prompts: Sequence[str], work: Path, workers: int, start: Start, seeds: int = 1) -> Store:
    """An audit from nothing but the index."""
    run = work / f"{len(prompts)} prompts"
    shutil.rmtree(run, ignore_errors=True)
    (work / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    tell = start(f"audit of {len(prompts)} prompts, {workers} workers", seeds * len(prompts))
    return audit(
        "bundled",
        work / "prompts.txt",
        run,
        workers=workers,
        progress=lambda _stage, done, _total: tell(done),
        images_per_prompt=seeds,
        seed=SEED,
        index=work / "index",
        detector=DETECTOR,
        fpr=RATE,
    )


def evidence(store: Store, manifest: Manifest, prompts: dict[str, Entry | None]) -> dict[str, Any]:
    """What was confirmed, against the truth."""
    rows = [recorded | scored for recorded, scored in zip(store.rows("images"), store.rows("scores"), strict=True)]
    threshold = ground_of(manifest.ground).threshold
    replicated, unplanted = [], []
    levels: dict[str, Counter[str]] = {}
    for row in rows:
        entry = prompts[row["prompt"]]
        kind = "ordinary" if entry is None else entry.kind
        row |= {"kind": kind, "cluster": row["prompt"] if entry is None else entry.id}
        rung = f", {entry.exposures} exposures" if entry is not None and entry.planted else ""
        levels.setdefault(f"{kind}{rung}", Counter())[row["level"]] += 1
        if entry is None or not entry.planted:
            unplanted.append(row)
        elif entry.exposures == manifest.top:
            with Image.open(store.folder / row["image"]) as picture:
                image = np.asarray(picture, dtype=np.float32) / 255
            if replicates(image, manifest.places(entry), threshold):
                replicated.append(row)
    flagged = sum(row["flagged"] for row in rows)
    confirmed_right = sum(row["level"] == "confirmed" and named(row) == row["cluster"] for row in replicated)
    return {
        "replicated_generations": len(replicated),
        "confirmed_recall": rates(replicated, lambda row: row["level"] == "confirmed"),
        "confirmed_recall_without_mask": rates(replicated, lambda row: row["matched_whole"]),
        "confirmed_names_the_planted_image": confirmed_right,
        "false_confirmed": rates(unplanted, lambda row: row["level"] == "confirmed"),
        "false_confirmed_captions": len({row["prompt"] for row in unplanted if row["level"] == "confirmed"}),
        "false_confirmed_images": sum(row["level"] == "confirmed" for row in unplanted),
        "never_planted_images": len(unplanted),
        "flagged_images": flagged,
        "levels": {kind: dict(counts) for kind, counts in levels.items()},
    }


def named(row: dict[str, Any]) -> str:
    """The training image that a confirmed row matches, without its suffix."""
    return Path(row["region_path" if row["matched_region"] else "whole_path"]).stem


def rates(rows: list[dict[str, Any]], hit: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The share of hits with its interval, of all rows and by kind."""

    def of(counted: list[dict[str, Any]]) -> dict[str, float]:
        return asdict(share(by([row["cluster"] for row in counted], np.array([hit(row) for row in counted]))))

    kinds = dict.fromkeys(row["kind"] for row in rows)
    return {**of(rows), "by_kind": {kind: of([row for row in rows if row["kind"] == kind]) for kind in kinds}}


def throughput(pipe: Any, prompts: dict[str, Entry | None], work: Path, start: Start) -> dict[str, Any]:
    """An audit compared with one program after the other, and two workers compared with one."""
    ratios: dict[str, list[float]] = {
        "throughput_ratio": [],
        "throughput_ratio_every_image": [],
        "throughput_two_workers": [],
    }
    for number in range(ROUNDS):
        part = [list(prompts)[place * len(prompts) // PART + number] for place in range(PART)]
        seconds = {
            workers: timed(lambda: fresh_audit(part, work, workers, start))  # noqa: B023
            for workers in (1, 2)
        }
        flagged, whole = programs(pipe, part, start(f"programs, round {number + 1}", len(part)))
        ratios["throughput_ratio"].append((whole["detect"] + flagged) / seconds[WORKERS])
        ratios["throughput_ratio_every_image"].append(sum(whole.values()) / seconds[WORKERS])
        ratios["throughput_two_workers"].append(seconds[1] / seconds[2])
    return {
        name: {"value": float(np.median(values)), "low": min(values), "high": max(values)}
        for name, values in ratios.items()
    }


def programs(pipe: Any, prompts: list[str], tell: Callable[[float], None]) -> tuple[float, dict[str, float]]:
    """Seconds that localization and mitigation take for flagged images, and seconds of every program for all images."""
    setup = Setup.of(pipe, {"num_inference_steps": Manifest.load(BUNDLE).steps})
    calibration = resolved(None, pipe)
    detector, localizer = detector_of(DETECTOR, setup), localizer_of("auto", setup)
    judge = Judge(calibration, detector, RATE)
    guarding = Guard(pipe, calibration, detector=detector, policy="mitigate", fpr=RATE)

    def detect(prompt: str) -> bool:
        (batch,) = generate(setup, [prompt], [SEED], norms=detector.norms, signals=detector.signals)
        return judge(batch.trajectory)[0].flagged

    def localize(prompt: str) -> None:
        list(mapped(setup, [prompt], [SEED], [localizer], batch_size=1, decode=True))

    def mitigate(prompt: str) -> None:
        list(generate(setup, [prompt], [SEED], around=lambda: guarding))

    totals: dict[str, float] = {"detect": 0.0, "localize": 0.0, "mitigate": 0.0}
    of_flagged = 0.0
    for number, prompt in enumerate(prompts, start=1):
        hits: list[bool] = []
        totals["detect"] += timed(lambda: hits.append(detect(prompt)))  # noqa: B023
        for name, program in {"localize": localize, "mitigate": mitigate}.items():
            seconds = timed(lambda: program(prompt))  # noqa: B023
            totals[name] += seconds
            of_flagged += seconds * hits[0]
        tell(number)
    return of_flagged, totals


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
