"""Generate the trials of a bench once, and let every detector score the same runs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from cryptomnesia.bench.figures import FPR, figures_of
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.calibration.fitting import calibrate, check_references, recorded_for
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import claim, prompts_digest, write_whole
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.statistics import conformal_p_values
from cryptomnesia.tracing.generation import check_call, generate, kept_prompts

CALIBRATION = "calibration.safetensors"
"""File of a bench's folder with the reference runs."""

ROWS = "rows.jsonl"
"""File with one line for every image that is done; a bench that was stopped goes on behind the last one."""

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
        folder: made if missing. If it holds a bench of the same kind that was stopped, that one goes on.
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
    settings = {
        **settings_of(setup, about, references, trials, batch_size=batch_size, threshold=threshold),
        "detectors": {detector.name: detector.describe() for detector in detectors},
    }
    claim(folder / "bench.json", settings, "a bench with other settings")
    with alone(folder):
        norms, signals = recorded_for(detectors)
        path = folder / CALIBRATION
        if not path.exists():
            calibrate(
                setup.pipe,
                references,
                detectors=detectors,
                batch_size=batch_size,
                progress=lambda done: report("references", done, len(references)),
                **call,
            ).save(path)
        calibration = Calibration.load(path)
        calibration.check(setup)
        done = len(_read(folder / ROWS))
        if done < len(trials):
            # batches are those of a bench that was never stopped
            done = done // batch_size * batch_size
            _keep(folder / ROWS, done)
        left = trials[done:]
        batches = generate(
            setup,
            [trial.prompt for trial in left],
            [trial.seed for trial in left],
            batch_size=batch_size,
            norms=norms,
            signals=signals,
            progress=lambda made: report("images", done + made, len(trials)),
        )
        for number, batch in enumerate(batches):
            part = left[number * batch_size : (number + 1) * batch_size]
            scores, p_values = _scored(detectors, calibration, batch.trajectory)
            lines = []
            for row, trial in enumerate(part):
                known = truth is not None and trial.group == MEMORIZED
                distance = float(truth(trial, batch.images[row])) if truth is not None and known else None
                values: dict[str, Any] = {
                    **asdict(trial),
                    "distance": distance,
                    "reproduced": None if distance is None else distance <= threshold,
                    "scores": {name: _number(found[row]) for name, found in scores.items()},
                    "p_values": {name: _number(found[row]) for name, found in p_values.items()},
                }
                lines.append(json.dumps(values))
            with (folder / ROWS).open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        rows = _read(folder / ROWS)
        names = [detector.name for detector in detectors]
        methods = {
            detector.name: {
                "describe": detector.describe(),
                "cost": detector.cost(setup),
                "earliest": detector.earliest(calibration.evaluations),
            }
            for detector in detectors
        }
        found = {**made_with(settings, references), "null": len(calibration.others)}
        packet = Packet(found, methods, rows, figures_of(rows, names))
        packet.save(folder / PACKET)
        return packet


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
    }


def made_with(settings: dict[str, Any], references: Sequence[str]) -> dict[str, Any]:
    """What a packet says about the settings of its bench: without what is in its rows, and with versions."""
    left_out = ("trials", "references", "detectors", "localizers")
    return {
        **{name: value for name, value in settings.items() if name not in left_out},
        "references": len(references),
        "references_sha256": prompts_digest(references),
        "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")},
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
    detectors: Sequence[Detector], calibration: Calibration, runs: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores and p-values of every detector, (B,) each; NaN for an image whose latents are not finite."""
    scores, p_values = {}, {}
    for detector in detectors:
        found = detector.score(runs, calibration.references)
        found = found.masked_fill(~runs.norms["z"].isfinite().all(dim=1), torch.nan)
        scores[detector.name] = found
        p_values[detector.name] = conformal_p_values(found, calibration.null(detector)[:, -1])
    return scores, p_values


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of the images that are done; a line that was being written when the bench was killed is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _keep(path: Path, count: int) -> None:
    """Keep the first `count` lines of a file."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")[:count]
        write_whole(path, "".join(f"{line}\n" for line in lines))


def _number(value: Tensor) -> float | None:
    """A number as JSON holds it: None for one that is not finite."""
    found = value.item()
    return found if value.isfinite() else None
