"""Make the pictures of trials under a mitigation, and keep also those that a guard would withhold."""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryptomnesia.bench.base import CalibratedBench
from cryptomnesia.bench.looking import Look
from cryptomnesia.bench.mitigation_figures import UNTOUCHED
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.trials import Trial
from cryptomnesia.calibration.fitting import check_references
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.guarding.making import Maker
from cryptomnesia.localizers import Localizer
from cryptomnesia.mitigations import Correction, Flagged, Mitigation
from cryptomnesia.mitigations.captions import draws_for
from cryptomnesia.parts import Report, Stage
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.places import make
from cryptomnesia.tracing.counting import Counting
from cryptomnesia.tracing.generation import check_call
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
    calls: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[np.ndarray | None]]:
    """Make the pictures of one batch under a mitigation, whether or not they are flagged, or as they are.

    Args:
        maker: makes and judges them.
        mitigation: None to make them as they are.
        setup: of the calls.
        trials: with different seeds.
        calls: one per trial.

    Returns:
        What is known of every picture, as JSON values, and the pictures (H, W, 3) uint8, None where none was made.
    """
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


@dataclass(kw_only=True)
class PictureBench(CalibratedBench[Packet]):
    """A bench that makes pictures under mitigations and as they are, and keeps all of them.

    Mitigations may be added to a finished one.

    Attributes:
        mitigations: that work in the set-up.
        detector: judges every picture.
        look: sees what is in pictures.
        fpr: false-positive rate at which a picture is flagged.
    """

    mitigations: Sequence[Mitigation]
    detector: Detector
    look: Look
    fpr: float = 0.01

    @property
    def judging(self) -> Sequence[Detector]:
        """The detector that judges every picture, for which the calibration is made."""
        return [self.detector]

    @property
    def mapping(self) -> Sequence[Localizer]:
        """The localizers whose maps the mitigations read."""
        return list({found.name: found for made in self.mitigations for found in made.maps(self.setup)}.values())

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """What the packet says about the mitigations."""
        return {made.name: {"describe": made.describe(), "cost": made.cost(self.setup)} for made in self.mitigations}

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: if the set-up refuses a method, two mitigations have one name, or the references are too few.
        """
        named = [made.name for made in self.mitigations]
        if len(set(named)) < len(named):
            raise UsageError(f"got the mitigations {', '.join(named)}; give every name once")
        self.setup.check([self.detector, *self.mitigations])
        check_call(self.setup)
        check_references(self.references, repeated=False, fpr=self.fpr)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a bench must not change when it goes on, as JSON values."""
        return {**super().settings, "detector": self.detector.describe(), "fpr": self.fpr}

    @abstractmethod
    def request(self, row: int) -> tuple[Trial, dict[str, Any]]:
        """The trial of a picture, and the arguments of the call that makes it."""

    def corrects(self, mitigation: Mitigation) -> bool:
        """Whether a mitigation corrects the user's own run, so that it can also change pictures that nobody flags."""
        return mitigation.correction(self.calibration.references) is not None

    def maker(self, mitigation: Mitigation | None = None) -> Maker:
        """What makes and judges pictures under a mitigation, or as they are."""
        alters = frozenset[str]() if mitigation is None else mitigation.alters
        return Maker(self.setup.pipe, self._judge, alters=alters, batch=self.batch_size)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.calibration, self.detector, self.fpr)

    def under(
        self, mitigation: Mitigation | None, rows: Sequence[int], prefix: str = "", size: int | None = None
    ) -> Stage:
        """The stage that makes pictures under a mitigation, or as they are.

        Args:
            mitigation: None to make them as they are.
            rows: numbers of the pictures.
            prefix: of the names of the files, for instance `others/` for a folder of their own.
            size: pictures per part; as many as per call unless given.

        Raises:
            UsageError: if the folder holds pictures that were made under the mitigation with other settings.
        """
        name = UNTOUCHED if mitigation is None else mitigation.name
        stage = Stage(name, f"{prefix}{name}-{{:05d}}.safetensors", self.folder, rows, size or self.batch_size)
        missing = stage.missing()
        # refused before anything is made
        if done := next((path for number, path in enumerate(stage.files) if number not in missing), None):
            self._read(name, done)
        return stage

    def calibrated_part(self, stage: Stage, number: int, report: Report) -> None:
        """Make the pictures of a part, and write them with what is known of them."""
        mitigation = self._named(stage.name)
        trials, calls = zip(*map(self.request, stage.part(number)), strict=True)
        with silent(self.setup.pipe):
            rows, pictures = remade(self.maker(mitigation), mitigation, self.setup, trials, calls)
        known = {f"{row}": torch.from_numpy(picture) for row, picture in enumerate(pictures) if picture is not None}
        path = stage.files[number]
        make(path.parent)
        save_checked(path, KIND, 1, {"rows": rows, "made_by": _words(mitigation)}, known)

    def pictures(self, stage: Stage) -> list[dict[str, Any]]:
        """The pictures of a stage.

        Returns:
            One dictionary per picture: `picture` (H, W, 3) uint8, None if `made` is false, `p_value`, `flagged`,
            `corrected`, `dropped`, `evaluations` and `seconds` per image.

        Raises:
            UsageError: for a damaged file of a part, or one that was made under a mitigation with other settings.
        """
        return [one for path in stage.files for one in self._read(stage.name, path)]

    def _read(self, name: str, path: Path) -> list[dict[str, Any]]:
        """The pictures of a part."""
        about, tensors = load_checked(path, KIND, 1)
        words = _words(self._named(name))
        if about["made_by"] != words:
            raise UsageError(f"{path} was made by {about['made_by']}, not by {words}; give another folder")
        return [
            {**known, "picture": tensors[f"{row}"].numpy().copy() if known["made"] else None}
            for row, known in enumerate(about["rows"])
        ]

    def _named(self, name: str) -> Mitigation | None:
        """The mitigation with a name, None for `UNTOUCHED`.

        Raises:
            UsageError: if this machine does not have it.
        """
        named = {UNTOUCHED: None, **{made.name: made for made in self.mitigations}}
        if name not in named:
            raise UsageError(
                f"a machine of the cluster has no mitigation {name}; install the same packages on all, or name the "
                "mitigations (--mitigation)"
            )
        return named[name]


def _words(mitigation: Mitigation | None) -> str:
    """A mitigation with its settings in words."""
    return "" if mitigation is None else mitigation.describe()
