"""A calibration: what a set-up does with ordinary captions, and what follows from that.

It keeps what was recorded of the reference runs: the norms of every evaluation, the signals and the maps that were asked
for. Everything else is computed from that when it is needed. So a detector that reads only norms and signals that are
there can be used with a calibration that was made before the detector existed.

The reference runs are split in two. The first third shows what is usual; detectors compare runs with it. The rest,
compared with the first third, gives the null: the scores of ordinary images. A new image and the images of the null are
then exchangeable whenever the new caption is like the reference captions, so conformal p-values
(`cryptomnesia.statistics`) hold. The null is known at every evaluation, so a score can be judged early, against the
reference scores at the same evaluation. This holds for one look, at an evaluation that was chosen beforehand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.calibration.masks import ReferenceMaps
from cryptomnesia.detectors.base import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.localizers.base import Localizer
from cryptomnesia.pipelines.fingerprint import Fingerprint, differences
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Sampling
from cryptomnesia.statistics import conformal_p_values, conformal_threshold
from cryptomnesia.tracing.trajectory import Trajectory

FORMAT = 2
"""Version of the file's layout."""

FILE = "calibration.safetensors"
"""The file in a model's own folder that is used when no calibration is given."""


@dataclass(frozen=True)
class Calibration:
    """What was recorded of one image for every reference prompt, in one set-up.

    Attributes:
        fingerprint: of the set-up.
        runs: the reference runs: norms and signals, without tensors.
        maps: name of a localizer → its maps of the reference runs, (n, h, w).
        made_by: name of a signal or localizer → everything that changes its values, in words.
        prompts_sha256: hash of the reference prompts.
    """

    fingerprint: Fingerprint
    runs: Trajectory
    maps: Mapping[str, Tensor]
    made_by: Mapping[str, str]
    prompts_sha256: str
    # description of a detector → its null; not passed on to a copy with other runs
    _nulls: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __len__(self) -> int:
        """The number of reference runs."""
        return len(self.runs)

    @property
    def sampling(self) -> Sampling:
        """The settings that the calibration is for."""
        return Sampling(**{setting.name: self.fingerprint[setting.name] for setting in fields(Sampling)})

    @property
    def evaluations(self) -> int:
        """The number of evaluations of a run."""
        return len(self.runs.timesteps)

    @property
    def lowest_fpr(self) -> float:
        """The smallest false-positive rate that the null supports."""
        return 1 / (len(self._split[1]) + 1)

    @cached_property
    def references(self) -> Trajectory:
        """The reference runs that show what is usual; a third of all."""
        return self.runs.rows(self._split[0])

    @cached_property
    def others(self) -> Trajectory:
        """The reference runs whose scores are the null."""
        return self.runs.rows(self._split[1])

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        return split(len(self.runs))

    def null(self, detector: Detector) -> Tensor:
        """The scores of ordinary images after every evaluation, (n, N).

        Raises:
            UsageError: for a detector that reads what the calibration has not recorded, or that cannot tell of the
                reference runs.
        """
        key = detector.describe()
        if key not in self._nulls:
            self.check_detector(detector)
            scores = detector.running(self.others, self.references)
            # before there is a score nothing can be judged; later a score has to be there
            known = scores[:, detector.earliest(self.evaluations) - 1 :]
            if unknown := int(known.isnan().any(dim=1).sum()):
                raise UsageError(
                    f"{detector.name} cannot tell of {unknown} of the {len(scores)} reference runs; use another "
                    "detector, or check the model's dtype and guidance and calibrate again"
                )
            self._nulls[key] = scores
        return self._nulls[key]

    def p_value(self, detector: Detector, scores: Tensor, step_index: int = -1) -> Tensor:
        """Conformal p-values of scores (B,) after an evaluation, (B,) float64; NaN for a score of NaN."""
        return conformal_p_values(scores, self.null(detector)[:, self._checked(step_index)])

    def threshold(self, detector: Detector, fpr: float, step_index: int = -1) -> float:
        """The smallest score after an evaluation that is flagged at `fpr`: its p-value is at most `fpr`.

        Raises:
            UsageError: if `fpr` is no rate, or the references are too few for it.
        """
        return conformal_threshold(self.null(detector)[:, self._checked(step_index)], fpr)

    def map_reference(self, localizer: Localizer) -> ReferenceMaps:
        """What turns the localizer's maps into masks.

        Raises:
            UsageError: if the calibration has no such maps.
        """
        self.check_localizers([localizer])
        maps = self.maps[localizer.name]
        return ReferenceMaps(*(maps[rows] for rows in self._split))

    def check(self, setup: Setup) -> None:
        """Refuse any other set-up.

        Raises:
            UsageError: naming everything that differs.
        """
        if unlike := differences(self.fingerprint, setup.fingerprint):
            raise UsageError(
                f"the calibration was made with another set-up: {'; '.join(unlike)}; "
                "use that set-up, or make a calibration for this one with `cryptomnesia calibrate`"
            )

    def check_detector(self, detector: Detector) -> None:
        """Refuse a detector that reads what the calibration has not recorded.

        Raises:
            UsageError: naming what is missing, and what it takes to record it.
        """
        recorded = {**self.runs.norms, **self.runs.signals}
        if missing := sorted(detector.reads - recorded.keys()):
            raise UsageError(
                f"the calibration has not recorded {', '.join(missing)}, which {detector.name} reads; generate "
                f"{len(self)} references again with `cryptomnesia calibrate --detector {detector.name}`, or use another "
                "detector"
            )
        for signal in detector.signals:
            self._check_made(signal.name, signal.describe())
        if absent := sorted(name for name in detector.reads & self.runs.norms.keys() if recorded[name].isnan().all()):
            raise UsageError(
                f"the calibration's runs have no {', '.join(absent)}, which {detector.name} reads; use another detector, "
                "or calibrate with guidance above 1"
            )

    def check_localizers(self, localizers: Sequence[Localizer], checkpoint: str = "") -> None:
        """Refuse localizers whose maps the calibration does not have, or that were made in another way.

        Args:
            localizers: whose maps are to become masks.
            checkpoint: digest of the weights of the less-trained checkpoint, for those that are compared with one.

        Raises:
            UsageError: saying what is missing or differs.
        """
        for localizer in localizers:
            if localizer.name not in self.maps:
                known = ", ".join(self.maps) or "none"
                raise UsageError(
                    f"the calibration has no maps of {localizer.name} (it has: {known}); generate the references again "
                    f"with `cryptomnesia calibrate --localizer {localizer.name}`"
                )
            if checkpoint or localizer.baseline != "checkpoint":
                self._check_made(f"map {localizer.name}", made_in_words(localizer, checkpoint))

    def _check_made(self, name: str, words: str) -> None:
        if self.made_by[name] != words:
            raise UsageError(
                f"{name} is {words}, calibrated {self.made_by[name]}; use the same settings, or calibrate again"
            )

    def _checked(self, step_index: int) -> int:
        if not -self.evaluations <= step_index < self.evaluations:
            raise UsageError(
                f"got evaluation {step_index} of a run of {self.evaluations}; give one in 0 … {self.evaluations - 1}"
            )
        return step_index

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the rest as JSON in its header.

        Raises:
            UsageError: if it cannot be written there.
        """
        tensors = {f"norm/{name}": values for name, values in self.runs.norms.items()}
        tensors |= {f"signal/{name}": values for name, values in self.runs.signals.items()}
        tensors |= {f"map/{name}": values for name, values in self.maps.items()}
        about = {
            "fingerprint": self.fingerprint,
            "made_by": dict(self.made_by),
            "prompts_sha256": self.prompts_sha256,
            "timesteps": list(self.runs.timesteps),
        }
        save_checked(path, "calibration", FORMAT, about, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, no calibration, edited by hand, or of another version.
        """
        about, tensors = load_checked(path, "calibration", FORMAT)
        kinds: dict[str, dict[str, Tensor]] = {"norm": {}, "signal": {}, "map": {}}
        for key, values in tensors.items():
            kind, _, name = key.partition("/")
            kinds[kind][name] = values
        count = len(kinds["norm"]["z"])
        runs = Trajectory(
            tuple(about["timesteps"]), kinds["norm"], {}, torch.empty(count, 0), complete=True, signals=kinds["signal"]
        )
        return cls(about["fingerprint"], runs, kinds["map"], about["made_by"], about["prompts_sha256"])


def split(count: int) -> tuple[list[int], list[int]]:
    """Numbers of `count` reference runs in two parts, a third and the rest, at random and always alike."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    cut = count // 3
    return order[:cut], order[cut:]


def made_in_words(localizer: Localizer, checkpoint: str = "") -> str:
    """Everything that changes a localizer's map, in words."""
    return f"{localizer.describe()}{f' against {checkpoint[:12]}' if localizer.baseline == 'checkpoint' else ''}"


def calibration_of(pipe: Any) -> Path | None:
    """The calibration in the folder that a pipeline was loaded from, None where there is none."""
    folder = getattr(pipe, "config", {}).get("_name_or_path") or ""
    path = Path(folder) / FILE
    return path if folder and path.is_file() else None


def resolved(calibration: Calibration | str | Path | None, pipe: Any) -> Calibration:
    """A calibration that was given as an object, as a file, or not at all: then the one beside the model is used.

    Raises:
        UsageError: if there is none.
    """
    if isinstance(calibration, Calibration):
        return calibration
    path = calibration if calibration is not None else calibration_of(pipe)
    if path is None:
        raise UsageError(
            f"got no calibration, and there is no {FILE} beside the model; make one with `cryptomnesia calibrate` or "
            "`cryptomnesia.calibrate`, and give it as `calibration`"
        )
    return Calibration.load(path)
