"""What all benches have in common: methods are compared on the same images, of which the truth is known."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar, TypeVar

from cryptomnesia.bench.trials import Trial
from cryptomnesia.calibration.fitting import FIRST_SEED, recorded_by, warn_of_references
from cryptomnesia.calibration.recording import Recording
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import Detector
from cryptomnesia.files import load_checked, prompts_digest, save_checked
from cryptomnesia.localizers import Localizer
from cryptomnesia.parts import InParts, Report, Stage
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup

BENCH = "bench.json"
"""File of a bench's folder with the settings."""

CALIBRATION = "calibration.safetensors"
"""File of a bench's folder with the reference runs."""

REFERENCES, FITTING = "references", "calibration"
"""Names of the stages that record reference runs, and that make the calibration from them."""

KIND = "record of references"
"""What a file of reference runs is called in messages."""

Made = TypeVar("Made")


@dataclass(kw_only=True)
class Bench(InParts[Made]):
    """Methods that are compared on the same images, of which the truth is known.

    Attributes:
        setup: the pipeline and the settings of its calls.
        trials: what is generated.
        references: captions of reference images, ordinary ones that are none of the trials.
        about: what else the result depends on, as JSON values.
        batch_size: images per call of the pipeline.
    """

    claimed: ClassVar[str] = BENCH
    what: ClassVar[str] = "a bench"

    setup: Setup
    trials: Sequence[Trial]
    references: Sequence[str]
    about: dict[str, Any]
    batch_size: int = 8

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

    def calibrating(self) -> Iterator[list[Stage]]:
        """Yield the stage that records the reference runs, if there is no calibration, and the one that makes it."""
        fitting = Stage(FITTING, CALIBRATION, self.folder, range(1), 1)
        yield [self._references] if fitting.missing() else []
        yield [fitting]

    @property
    def _references(self) -> Stage:
        """The stage that records the reference runs batch by batch."""
        rows = range(len(self.references))
        return Stage(REFERENCES, f"{REFERENCES}-{{:05d}}.safetensors", self.folder, rows, self.batch_size)

    @cached_property
    def _recording(self) -> Recording:
        """What is recorded of the references."""
        return recorded_by(
            Setup.of(self.setup.pipe, self.call),
            self.references,
            detectors=self.judging,
            localizers=self.mapping,
            fpr=None,
            seed=FIRST_SEED,
            long="truncate",
            batch_size=self.batch_size,
        )

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration, once it is made."""
        found = Calibration.load(self.folder / CALIBRATION)
        found.check(self.setup)
        found.check_localizers(self.mapping)
        return found

    def part(self, stage: Stage, number: int, report: Report) -> None:
        """Make a part of the calibration, or of another stage.

        Raises:
            UsageError: for a damaged file of recorded runs, or runs of which no calibration can be made.
        """
        if stage.name == REFERENCES:
            rows = self._recording.batch(number, report)
            save_checked(stage.files[number], KIND, 1, {"rows": rows}, {})
        elif stage.name == FITTING:
            parts = [load_checked(path, KIND, 1)[0]["rows"] for path in self._references.files]
            calibration = self._recording.calibration([row for rows in parts for row in rows])
            warn_of_references(calibration)
            calibration.save(stage.files[number])
        else:
            self.calibrated_part(stage, number, report)

    @abstractmethod
    def calibrated_part(self, stage: Stage, number: int, report: Report) -> None:
        """Make a part of a stage that needs the calibration, and write its file."""
