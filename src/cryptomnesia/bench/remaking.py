"""Make the pictures of trials under a mitigation, and keep also those that a guard would withhold."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryptomnesia.bench.detecting import Progress
from cryptomnesia.bench.mitigation_figures import UNTOUCHED
from cryptomnesia.bench.trials import Trial
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.guarding.making import Maker
from cryptomnesia.mitigations import Correction, Flagged, Mitigation
from cryptomnesia.mitigations.captions import draws_for
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.counting import Counting
from cryptomnesia.verdicts import Verdict

KIND = "mitigation part"
"""Kind of the files of a bench's folder that hold the pictures of a batch."""


def call_of(setup: Setup, trial: Trial) -> dict[str, Any]:
    """The arguments of the call that makes the picture of a trial."""
    return {
        **setup.family.arguments([trial.prompt], setup.sampling),
        "generator": torch.Generator().manual_seed(trial.seed),
        "output_type": "pt",
    }


def remade(
    maker: Maker,
    mitigation: Mitigation | None,
    setup: Setup,
    trials: Sequence[Trial],
    calls: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[list[dict[str, Any]], list[np.ndarray | None]]:
    """Make the pictures of one batch under a mitigation, whether or not they are flagged, or as they are.

    Args:
        maker: makes and judges them.
        mitigation: None to make them as they are.
        setup: of the calls.
        trials: with different seeds.
        calls: one per trial; those of `call_of` by default.

    Returns:
        What is known of every picture, as JSON values, and the pictures (H, W, 3) uint8, None where none was made.
    """
    calls = [call_of(setup, trial) for trial in trials] if calls is None else calls
    studio: Any = _Studio(maker, calls, "" if mitigation is None else mitigation.name)
    dropped: list[list[str]] = [[] for _ in trials]
    began = time.perf_counter()
    with Counting(setup.family.module) as counting:
        if mitigation is None:
            studio.make(calls)
        else:
            pairs = zip(calls, trials, strict=True)
            flagged = [Flagged(call, _flagged(trial, row)) for row, (call, trial) in enumerate(pairs)]
            dropped = [list(found.verdict.dropped) for found in mitigation.remake(flagged, studio)]
    seconds = (time.perf_counter() - began) / len(trials)
    rows, pictures = [], []
    for row in range(len(trials)):
        # a mitigation that sees no way makes no picture; then nothing is returned
        picture, verdict = studio.newest.get(row, (None, None))
        pictures.append(picture)
        rows.append(
            {
                "p_value": None if verdict is None else verdict.p_value,
                "flagged": verdict is None or not (verdict.clean or verdict.action == "mitigated"),
                "corrected": 0 if verdict is None else len(verdict.corrected),
                "dropped": dropped[row],
                "made": verdict is not None,
                "evaluations": counting.samples / len(trials) / (2 if setup.guided else 1),
                "seconds": seconds,
            }
        )
    return rows, pictures


def _flagged(trial: Trial, row: int) -> Verdict:
    """The verdict on a picture that is made again whatever a detector says."""
    return Verdict(
        image=row,
        prompt=trial.prompt,
        detector="bench",
        fpr=1.0,
        score=1.0,
        p_value=0.0,
        flagged=True,
        first_flagged_step=0,
        reason="a memorized caption",
    )


class _Studio:
    """A studio that keeps the newest picture of every image, also of those that a mitigation would withhold.

    Attributes:
        newest: number of the image → picture (H, W, 3) uint8, and the verdict on it.
    """

    def __init__(self, maker: Maker, calls: Sequence[Mapping[str, Any]], name: str) -> None:
        """Take the calls, whose images a mitigation of this name makes again from their noise or from other noise."""
        self.newest: dict[int, tuple[np.ndarray, Verdict]] = {}
        self._maker = maker
        self._rows = {
            generator.initial_seed(): row
            for row, call in enumerate(calls)
            for generator in (call["generator"], draws_for(call, name))
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._maker, name)

    def make(
        self, calls: Sequence[Mapping[str, Any]], correction: Correction | None = None
    ) -> tuple[Any, list[Verdict]]:
        output, verdicts = self._maker.make(calls, correction)
        for call, image, verdict in zip(calls, output.images, verdicts, strict=True):
            picture = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            # what a mitigation makes of noise of its own belongs to no image
            if (row := self._rows.get(call["generator"].initial_seed())) is not None:
                self.newest[row] = picture, verdict
        return output, verdicts


def kept_pictures(
    maker: Maker,
    mitigation: Mitigation | None,
    setup: Setup,
    trials: Sequence[Trial],
    folder: Path,
    batch_size: int,
    report: Progress,
    calls: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The pictures of trials with what is known of them, made under a mitigation or as they are, and kept in a folder.

    Args:
        maker: makes and judges them.
        mitigation: None to make them as they are.
        setup: of the calls.
        trials: with different seeds.
        folder: with the batches that are made already.
        batch_size: images per call of the pipeline.
        report: called after every batch.
        calls: one per trial; those of `call_of` by default.

    Returns:
        One dictionary per trial: `picture` (H, W, 3) uint8, None if `made` is false, `p_value`, `flagged`, `corrected`,
        `dropped`, `evaluations` and `seconds` per image.
    """
    name = UNTOUCHED if mitigation is None else mitigation.name
    done: list[dict[str, Any]] = []
    for start in range(0, len(trials), batch_size):
        path = folder / f"{name}-{start // batch_size:05d}.safetensors"
        part = trials[start : start + batch_size]
        words = "" if mitigation is None else mitigation.describe()
        if not path.exists():
            given = None if calls is None else calls[start : start + batch_size]
            rows, made = remade(maker, mitigation, setup, part, given)
            known = {f"{row}": torch.from_numpy(picture) for row, picture in enumerate(made) if picture is not None}
            save_checked(path, KIND, 1, {"rows": rows, "made_by": words}, known)
        about, tensors = load_checked(path, KIND, 1)
        if about["made_by"] != words:
            raise UsageError(f"{path} was made by {about['made_by']}, not by {words}; give another folder")
        for row, known in enumerate(about["rows"]):
            done.append({**known, "picture": tensors[f"{row}"].numpy().copy() if known["made"] else None})
        report(name, len(done), len(trials))
    return done
