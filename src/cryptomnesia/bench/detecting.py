"""Generate the trials of a bench once, and let every detector score the same runs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from cryptomnesia.bench.figures import FPR, figures_of
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.calibration.fitting import calibrate, check_references
from cryptomnesia.calibration.recording import recorded_for
from cryptomnesia.calibration.stored import Calibration, norm_in_words
from cryptomnesia.detectors import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import claim, load_checked, prompts_digest, save_checked
from cryptomnesia.localizers import Localizer
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.statistics import conformal_p_values
from cryptomnesia.tracing.generation import check_call, generate, kept_prompts
from cryptomnesia.tracing.trajectory import Trajectory, joined

CALIBRATION = "calibration.safetensors"
"""File of a bench's folder with the reference runs."""

KIND = "bench part"
"""Kind of the files of a bench's folder that hold what was recorded of a batch; one that was stopped goes on behind the
last of them."""

PACKET = "packet.json"
"""File with everything, when the bench is done."""

Progress = Callable[[str, float, int], None]
"""Called with (what, done, in all)."""

Truth = Callable[[Trial, Tensor], float]
"""The distance of a generated picture (3, H, W) in [0, 1] from what was planted under its caption."""


def bench(
    setup: Setup,
    trials: Sequence[Trial],
    references: Sequence[str],
    detectors: Sequence[Detector],
    folder: Path,
    *,
    call: dict[str, Any],
    about: dict[str, Any],
    truth: Truth | None = None,
    threshold: float = 0.0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Packet:
    """Score the trials by every detector, and write the packet to `folder`.

    Args:
        setup: the pipeline and the settings of its calls.
        trials: what is generated.
        references: captions of the calibration, ordinary ones that are none of the trials.
        detectors: that work in the set-up.
        folder: made if missing. If it holds a bench of the same kind that was stopped, that one goes on; if that one is
            finished and has recorded what the detectors read, nothing is generated.
        call: arguments of every call, with which `setup` was made.
        about: what else the scores depend on, as JSON values.
        truth: how far a picture is from what was planted; None where that is not known.
        threshold: largest such distance at which a picture counts as reproduced.
        batch_size: images per call of the pipeline.
        progress: called while images are generated.

    Raises:
        UsageError: if the folder holds another bench, another process works in it, the set-up refuses a detector, or
            the references are too few for a false-positive rate of 1%.
    """
    report = progress or (lambda *_: None)
    setup.check(detectors)
    check_call(setup)
    check_references(references, repeated=not setup.family.conditional, fpr=FPR)
    # a warning says which prompts are cut off
    kept_prompts(setup, [trial.prompt for trial in trials], "truncate")
    norms, signals = recorded_for(detectors)
    count = -(-len(trials) // batch_size)
    recorded = {made.name: norm_in_words(made) for made in norms} | {made.name: made.describe() for made in signals}
    settings = {
        **settings_of(setup, about, references, trials, batch_size=batch_size, threshold=threshold),
        "recorded": _enough(folder, recorded, count),
    }
    claim(folder / "bench.json", settings, "a bench with other settings")
    with alone(folder):
        calibration = calibrated(
            setup, references, folder, call=call, batch_size=batch_size, report=report, detectors=detectors
        )
        for made in detectors:
            # one that gives no score to some reference is refused before the images are generated
            calibration.null(made)
        # batches are those of a bench that was never stopped
        first = next((number for number in range(count) if not part_of(folder, number).exists()), count)
        left = trials[first * batch_size :]
        batches = generate(
            setup,
            [trial.prompt for trial in left],
            [trial.seed for trial in left],
            batch_size=batch_size,
            norms=norms,
            signals=signals,
            progress=lambda made: report("images", first * batch_size + made, len(trials)),
        )
        for number, batch in enumerate(batches, start=first):
            part = trials[number * batch_size : (number + 1) * batch_size]
            rows = []
            for trial, image in zip(part, batch.images, strict=True):
                known = truth is not None and trial.group == MEMORIZED
                distance = float(truth(trial, image)) if truth is not None and known else None
                reproduced = None if distance is None else distance <= threshold
                rows.append({**asdict(trial), "distance": distance, "reproduced": reproduced})
            run = batch.trajectory
            tensors = {f"norm/{name}": values for name, values in run.norms.items()}
            tensors |= {f"signal/{name}": values for name, values in run.signals.items()}
            save_checked(part_of(folder, number), KIND, 1, {"rows": rows, "timesteps": list(run.timesteps)}, tensors)
        rows, runs = _recorded(folder, count)
        packet = _packet(setup, detectors, calibration, rows, runs, made_with(settings, references))
        packet.save(folder / PACKET)
        return packet


def calibrated(
    setup: Setup,
    references: Sequence[str],
    folder: Path,
    *,
    call: dict[str, Any],
    batch_size: int,
    report: Progress,
    detectors: Sequence[Detector] = (),
    localizers: Sequence[Localizer] = (),
) -> Calibration:
    """The calibration of a bench, which is made if its folder has none."""
    path = folder / CALIBRATION
    if not path.exists():
        calibrate(
            setup.pipe,
            references,
            detectors=detectors,
            localizers=localizers,
            batch_size=batch_size,
            progress=lambda done: report("references", done, len(references)),
            **call,
        ).save(path)
    calibration = Calibration.load(path)
    calibration.check(setup)
    return calibration


def _enough(folder: Path, recorded: dict[str, str], count: int) -> dict[str, str]:
    """What a bench records, or what the finished one in the folder has recorded, if that holds everything."""
    done = all(part_of(folder, number).exists() for number in range(count))
    try:
        earlier = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["recorded"] if done else {}
    except (OSError, ValueError, KeyError):
        return recorded
    return earlier if recorded.items() <= earlier.items() else recorded


def part_of(folder: Path, number: int) -> Path:
    """The file of a batch."""
    return folder / f"part-{number:05d}.safetensors"


def _recorded(folder: Path, count: int) -> tuple[list[dict[str, Any]], Trajectory]:
    """The rows and the runs of all batches."""
    rows, runs = [], []
    for number in range(count):
        about, tensors = load_checked(part_of(folder, number), KIND, 1)
        rows += about["rows"]
        parts: dict[str, dict[str, Tensor]] = {"norm": {}, "signal": {}}
        for key, values in tensors.items():
            kind, _, name = key.partition("/")
            parts[kind][name] = values
        nothing = torch.empty(len(about["rows"]), 0)
        times = tuple(about["timesteps"])
        runs.append(Trajectory(times, parts["norm"], {}, nothing, complete=True, signals=parts["signal"]))
    return rows, joined(runs)


def _packet(
    setup: Setup,
    detectors: Sequence[Detector],
    calibration: Calibration,
    rows: list[dict[str, Any]],
    runs: Trajectory,
    about: dict[str, Any],
) -> Packet:
    """The scores of all detectors, and their figures."""
    scores, p_values = _scored(detectors, calibration, runs)
    for number, row in enumerate(rows):
        row["scores"] = {name: _number(found[number]) for name, found in scores.items()}
        row["p_values"] = {name: _number(found[number]) for name, found in p_values.items()}
    methods = {
        detector.name: {
            "describe": detector.describe(),
            "cost": detector.cost(setup),
            "earliest": detector.earliest(calibration.evaluations),
        }
        for detector in detectors
    }
    return Packet({**about, "null": len(calibration.others)}, methods, rows, figures_of(rows, list(methods)))


def settings_of(
    setup: Setup,
    about: dict[str, Any],
    references: Sequence[str],
    trials: Sequence[Trial],
    *,
    batch_size: int,
    threshold: float,
) -> dict[str, Any]:
    """What a bench must not change when it goes on, as JSON values."""
    return {
        **about,
        "batch_size": batch_size,
        "weights": weights_digest(setup.pipe),
        "fingerprint": {name: str(value) for name, value in setup.fingerprint.items()},
        "references": list(references),
        "threshold": threshold,
        "trials": [asdict(trial) for trial in trials],
        "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")},
    }


def made_with(settings: dict[str, Any], references: Sequence[str]) -> dict[str, Any]:
    """What a packet says about the settings of its bench: without what is in its rows."""
    left_out = ("trials", "references", "recorded", "localizers")
    return {
        **{name: value for name, value in settings.items() if name not in left_out},
        "references": len(references),
        "references_sha256": prompts_digest(references),
    }


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in a folder that no other process works in.

    Raises:
        UsageError: if one does.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another process works on the bench in {folder}; wait until it ends, or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _scored(
    detectors: Sequence[Detector], calibration: Calibration, runs: Trajectory
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores and p-values of every detector, (B,) each; NaN for an image whose latents are not finite."""
    scores, p_values = {}, {}
    for detector in detectors:
        found = detector.score(runs, calibration.references)
        found = found.masked_fill(~runs.norms["z"].isfinite().all(dim=1), torch.nan)
        scores[detector.name] = found
        p_values[detector.name] = conformal_p_values(found, calibration.null(detector)[:, -1])
    return scores, p_values


def _number(value: Tensor) -> float | None:
    """A number as JSON holds it, with the digits of single precision: None for one that is not finite."""
    return float(str(np.float32(value.item()))) if value.float().isfinite() else None
