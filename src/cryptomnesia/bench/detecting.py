"""Generate the trials of a bench once, and let every detector score the same runs."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.bench.base import BENCH, CalibratedBench
from cryptomnesia.bench.figures import FPR, figures_of
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.calibration.fitting import check_references
from cryptomnesia.calibration.recording import recorded_for
from cryptomnesia.calibration.stored import norm_in_words
from cryptomnesia.detectors import Detector
from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.parts import Report, Stage
from cryptomnesia.statistics import conformal_p_values
from cryptomnesia.tracing.generation import check_call, generate, kept_prompts
from cryptomnesia.tracing.trajectory import Trajectory, joined

KIND = "bench part"
"""Kind of the files of a bench's folder that hold what was recorded of a batch."""

PARTS = "part-{:05d}.safetensors"
"""Pattern of the names of these files."""

PACKET = "packet.json"
"""File with everything, when the bench is done."""

Truth = Callable[[Trial, Tensor], float]
"""The distance of a generated picture (3, H, W) in [0, 1] from what was planted under its caption."""


@dataclass(kw_only=True)
class DetectorBench(CalibratedBench[Packet]):
    """Detectors, which score the same runs.

    If the folder holds a finished bench that has recorded what the detectors read, nothing is generated.

    Attributes:
        detectors: that work in the set-up.
        truth: how far a picture is from what was planted; None where that is not known.
        threshold: largest such distance at which a picture counts as reproduced.
    """

    detectors: Sequence[Detector]
    truth: Truth | None = None
    threshold: float = 0.0

    @property
    def judging(self) -> Sequence[Detector]:
        """The detectors that are compared, for which the calibration is made."""
        return self.detectors

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: if the set-up refuses a detector, or the references are too few for a false-positive rate of 1%.
        """
        self.setup.check(self.detectors)
        check_call(self.setup)
        check_references(self.references, repeated=not self.setup.family.conditional, fpr=FPR)
        # a warning says which prompts are cut off
        kept_prompts(self.setup, [trial.prompt for trial in self.trials], "truncate")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a bench must not change when it goes on, as JSON values."""
        norms, signals = recorded_for(self.detectors)
        recorded = {made.name: norm_in_words(made) for made in norms} | {made.name: made.describe() for made in signals}
        return {**super().settings, "threshold": self.threshold, "recorded": self._enough(recorded)}

    def _enough(self, recorded: dict[str, str]) -> dict[str, str]:
        """What a bench records, or what the finished one in the folder has recorded, if that holds everything."""
        done = not self._images.missing()
        try:
            earlier = json.loads((self.folder / BENCH).read_text(encoding="utf-8"))["recorded"] if done else {}
        except (OSError, ValueError, KeyError):
            return recorded
        return earlier if recorded.items() <= earlier.items() else recorded

    @property
    def _images(self) -> Stage:
        """The stage that generates the trials."""
        return Stage("images", PARTS, self.folder, range(len(self.trials)), self.batch_size)

    def stages(self) -> Iterator[list[Stage]]:
        """Yield the calibration, and then the images."""
        yield from self.calibrating()
        for made in self.detectors:
            # one that gives no score to some reference is refused before the images are generated
            self.calibration.null(made)
        yield [self._images]

    def calibrated_part(self, stage: Stage, number: int, report: Report) -> None:
        """Generate a batch, and write what the detectors read."""
        part = [self.trials[row] for row in stage.part(number)]
        norms, signals = recorded_for(self.detectors)
        (batch,) = generate(
            self.setup,
            [trial.prompt for trial in part],
            [trial.seed for trial in part],
            batch_size=len(part),
            norms=norms,
            signals=signals,
            progress=report,
        )
        rows = []
        for trial, image in zip(part, batch.images, strict=True):
            known = self.truth is not None and trial.group == MEMORIZED
            distance = float(self.truth(trial, image)) if self.truth is not None and known else None
            reproduced = None if distance is None else distance <= self.threshold
            rows.append({**asdict(trial), "distance": distance, "reproduced": reproduced})
        save_runs(stage.files[number], rows, batch.trajectory)

    def result(self) -> Packet:
        """The scores of all detectors, and their figures.

        Raises:
            UsageError: for a damaged file of a part.
        """
        parts = [load_runs(path) for path in self._images.files]
        rows = [row for part, _ in parts for row in part]
        scores, p_values = self._scored(joined([runs for _, runs in parts]))
        for number, row in enumerate(rows):
            row["scores"] = {name: _number(found[number]) for name, found in scores.items()}
            row["p_values"] = {name: _number(found[number]) for name, found in p_values.items()}
        methods = {
            detector.name: {
                "describe": detector.describe(),
                "cost": detector.cost(self.setup),
                "earliest": detector.earliest(self.calibration.evaluations),
            }
            for detector in self.detectors
        }
        about = {**self.made_with, "null": len(self.calibration.others)}
        packet = Packet(about, methods, rows, figures_of(rows, list(methods)))
        packet.save(self.folder / PACKET)
        return packet

    def _scored(self, runs: Trajectory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scores and p-values of every detector, (B,) each; NaN for an image whose latents are not finite."""
        scores, p_values = {}, {}
        for detector in self.detectors:
            found = detector.score(runs, self.calibration.references)
            found = found.masked_fill(~runs.norms["z"].isfinite().all(dim=1), torch.nan)
            scores[detector.name] = found
            p_values[detector.name] = conformal_p_values(found, self.calibration.null(detector)[:, -1])
        return scores, p_values


def save_runs(path: Path, rows: list[dict[str, Any]], runs: Trajectory) -> None:
    """Write norms and signals of runs, and JSON values about them."""
    tensors = {f"norm/{name}": values for name, values in runs.norms.items()}
    tensors |= {f"signal/{name}": values for name, values in runs.signals.items()}
    save_checked(path, KIND, 1, {"rows": rows, "timesteps": list(runs.timesteps)}, tensors)


def load_runs(path: Path) -> tuple[list[dict[str, Any]], Trajectory]:
    """Read what `save_runs` wrote.

    Raises:
        UsageError: for a file that is missing, of another kind, damaged, or edited.
    """
    about, tensors = load_checked(path, KIND, 1)
    parts: dict[str, dict[str, Tensor]] = {"norm": {}, "signal": {}}
    for key, values in tensors.items():
        kind, _, name = key.partition("/")
        parts[kind][name] = values
    nothing = torch.empty(len(parts["norm"]["z"]), 0)
    times = tuple(about["timesteps"])
    return about["rows"], Trajectory(times, parts["norm"], {}, nothing, complete=True, signals=parts["signal"])


def _number(value: Tensor) -> float | None:
    """A number as JSON holds it, with the digits of single precision: None for one that is not finite."""
    return float(str(np.float32(value.item()))) if value.float().isfinite() else None
