"""What all benches have in common: they are made in parts, and any process can make a part.

A part is a file in the folder of the bench, which is written whole. A bench that was stopped lacks some of these files,
and goes on by making them. A part does not depend on who makes it, when, or how often.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from cryptomnesia.bench.trials import Trial
from cryptomnesia.calibration.fitting import calibrate
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import Detector
from cryptomnesia.files import claim, prompts_digest
from cryptomnesia.localizers import Localizer
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.places import names

BENCH = "bench.json"
"""File of a bench's folder with the settings."""

CALIBRATION = "calibration.safetensors"
"""File of a bench's folder with the reference runs."""

REFERENCES = "references"
"""Name of the stage that makes the calibration."""

Report = Callable[[float], None]
"""Called with the number of images of a part that are done."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Stage:
    """Parts of a bench in which the same is done with different images.

    Attributes:
        name: what is made, as the progress bar calls it.
        pattern: path of the file of a part in the folder, with a place for the number of the part.
        folder: of the bench.
        rows: numbers of the images.
        size: images per part.
    """

    name: str
    pattern: str
    folder: Path = field(repr=False)
    rows: Sequence[int] = field(repr=False)
    size: int = field(repr=False)

    @property
    def files(self) -> list[Path]:
        """The file of every part."""
        return [self.folder / self.pattern.format(number) for number in range(-(-len(self.rows) // self.size))]

    def part(self, number: int) -> Sequence[int]:
        """The numbers of the images of a part."""
        return self.rows[number * self.size : (number + 1) * self.size]

    def missing(self) -> list[int]:
        """The numbers of the parts that are not done."""
        files = self.files
        found = names(files[0].parent, files[0].suffix) if files else {}
        return [number for number, file in enumerate(files) if file.name not in found]


@dataclass(kw_only=True)
class Bench(ABC, Generic[Made]):
    """Methods that are compared on the same images, of which the truth is known.

    Attributes:
        setup: the pipeline and the settings of its calls.
        trials: what is generated.
        references: captions of reference images, ordinary ones that are none of the trials.
        folder: made if missing. If it holds a bench of the same kind that was stopped, that one goes on.
        about: what else the result depends on, as JSON values.
        batch_size: images per call of the pipeline.
    """

    setup: Setup
    trials: Sequence[Trial]
    references: Sequence[str]
    folder: Path
    about: dict[str, Any]
    batch_size: int = 8

    @abstractmethod
    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: saying what.
        """

    def begin(self) -> None:
        """Make the folder the folder of this bench, or see that it is.

        Raises:
            UsageError: if the folder holds another bench, or for what `check` refuses, which leaves no folder.
        """
        self.check()
        claim(self.folder / BENCH, self.settings, "a bench with other settings")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a bench must not change when it goes on, as JSON values."""
        return {
            **self.about,
            "batch_size": self.batch_size,
            "weights": weights_digest(self.setup.pipe),
            "fingerprint": {name: str(value) for name, value in self.setup.fingerprint.items()},
            "references": list(self.references),
            "threshold": 0.0,
            "trials": [asdict(trial) for trial in self.trials],
            "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")},
        }

    @property
    def made_with(self) -> dict[str, Any]:
        """What the packet says about the settings: without what is in its rows."""
        left_out = ("trials", "references", "recorded", "localizers")
        return {
            **{name: value for name, value in self.settings.items() if name not in left_out},
            "references": len(self.references),
            "references_sha256": prompts_digest(self.references),
        }

    @abstractmethod
    def stages(self) -> Iterator[list[Stage]]:
        """Yield stages that can be made at the same time, once all that were yielded before are done."""

    @abstractmethod
    def part(self, stage: Stage, number: int, report: Report) -> None:
        """Make a part of a stage, and write its file."""

    @abstractmethod
    def packet(self) -> Made:
        """Make the packet from the files of all parts, and write it."""


@dataclass(kw_only=True)
class CalibratedBench(Bench[Made]):
    """A bench that judges by a calibration.

    Attributes:
        call: arguments of every call, with which `setup` was made.
    """

    call: dict[str, Any]

    @property
    @abstractmethod
    def judging(self) -> Sequence[Detector]:
        """The detectors that the calibration is for."""

    @property
    def mapping(self) -> Sequence[Localizer]:
        """The localizers that the calibration is for."""
        return ()

    @property
    def calibrating(self) -> Stage:
        """The stage that makes the calibration, in one part."""
        count = len(self.references)
        return Stage(REFERENCES, CALIBRATION, self.folder, range(count), count)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration, once it is made."""
        found = Calibration.load(self.folder / CALIBRATION)
        found.check(self.setup)
        found.check_localizers(self.mapping)
        return found

    def part(self, stage: Stage, number: int, report: Report) -> None:
        """Make the calibration, or a part of another stage."""
        if stage.name != REFERENCES:
            self.calibrated_part(stage, number, report)
            return
        calibrate(
            self.setup.pipe,
            self.references,
            detectors=self.judging,
            localizers=self.mapping,
            batch_size=self.batch_size,
            progress=report,
            **self.call,
        ).save(self.folder / CALIBRATION)

    @abstractmethod
    def calibrated_part(self, stage: Stage, number: int, report: Report) -> None:
        """Make a part of a stage that needs the calibration, and write its file."""
