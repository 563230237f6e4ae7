"""A calibration: the record of what a set-up does with ordinary captions.

It keeps what was recorded of the reference runs: the norms of every evaluation, and the signals and maps that were
asked for. Nulls and thresholds are computed from that when they are needed. So a detector that reads only recorded
norms and signals works with a calibration that was made before the detector existed.

The reference runs are split in two. The first third shows what is usual, and detectors compare other runs with it. The
scores of the other runs are the null: the scores of ordinary images. If a new caption is like the reference captions,
the new image is exchangeable with the images of the null, and conformal p-values (`cryptomnesia.statistics`) hold. The
null is known at every evaluation, so a score can be judged early, against the null at the same evaluation. The p-value
holds if that evaluation was chosen beforehand, and not if several are looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.masks import ReferenceMaps
from cryptomnesia.calibration.outliers import Suspicious, served, suspicious
from cryptomnesia.detectors.base import Detector, running_scores
from cryptomnesia.errors import UsageError
from cryptomnesia.files import load_checked, save_checked
from cryptomnesia.localizers.base import Localizer
from cryptomnesia.pipelines.fingerprint import Fingerprint, differences
from cryptomnesia.pipelines.setup import Setup, describe
from cryptomnesia.settings import Sampling
from cryptomnesia.statistics import conformal_p_values, conformal_threshold, null_size
from cryptomnesia.tracing.generation import whole_number
from cryptomnesia.tracing.trajectory import Norm, Trajectory

FORMAT = 3
"""Version of the file's layout."""

FILE = "calibration.safetensors"
"""Name of the file in a model's folder that is used when no calibration is given."""


@dataclass(frozen=True)
class Calibration:
    """The record of one image of every reference prompt in one set-up.

    Attributes:
        fingerprint: the fingerprint of the set-up.
        runs: the reference runs with norms and signals, without kept tensors.
        maps: name of a localizer → its maps of the reference runs, (n, h, w).
        made_by: name of a further norm or a signal, or "map" and the name of a localizer → everything that changes its
            values, in words.
        prompts_sha256: hash of all reference prompts, also of those that are left out.
        captions: hashes of the reference prompts and of their words.
        left_out: numbers, counted from 0, of the reference prompts that were generated and are left out.
    """

    fingerprint: Fingerprint
    runs: Trajectory
    maps: Mapping[str, Tensor]
    made_by: Mapping[str, str]
    prompts_sha256: str
    captions: Captions = field(default_factory=lambda: Captions.of([]))
    left_out: tuple[int, ...] = ()
    # the null of every detector that was asked for; not passed on to a copy with other runs. The key is the detector
    # itself: another class, edited in a notebook perhaps, may describe itself in the same words
    _nulls: dict[Detector, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __len__(self) -> int:
        """The number of reference runs."""
        return len(self.runs)

    @property
    def sampling(self) -> Sampling:
        """The settings of the set-up."""
        return Sampling(**{setting.name: self.fingerprint[setting.name] for setting in fields(Sampling)})

    @property
    def evaluations(self) -> int:
        """The number of evaluations of a run."""
        return len(self.runs.timesteps)

    @property
    def lowest_fpr(self) -> float:
        """The smallest false-positive rate that the null supports, 1/(n + 1) for n scores."""
        return 1 / (len(self._split[1]) + 1)

    @cached_property
    def references(self) -> Trajectory:
        """The reference runs that show what is usual, a third of all."""
        return self.runs.rows(self._split[0])

    @cached_property
    def others(self) -> Trajectory:
        """The reference runs whose scores are the null, two thirds of all."""
        return self.runs.rows(self._split[1])

    @cached_property
    def numbers(self) -> list[int]:
        """The number of every reference run among all that were generated, counted from 0."""
        return sorted(set(range(len(self) + len(self.left_out))) - set(self.left_out))

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        # what is left out changes nothing about the others, so that thresholds with and without it can be compared
        rows = {number: row for row, number in enumerate(self.numbers)}
        first, second = (
            [rows[number] for number in part if number in rows] for part in split(len(self) + len(self.left_out))
        )
        return first, second

    def suspicious(self, detectors: Sequence[Detector] | None = None) -> list[Suspicious]:
        """The reference prompts that look memorized themselves, the most remarkable first.

        Args:
            detectors: that judge together; by default all registered ones that read only norms, and can be served.

        Raises:
            UsageError: for a detector that reads what the calibration has not recorded.
        """
        judges = list(served(self) if detectors is None else detectors)
        for judge in judges:
            self.null(judge)
        return suspicious(self, judges) if judges else []

    def without(self, numbers: Sequence[int]) -> "Calibration":
        """The calibration without some reference prompts.

        If k of them are in the null and were ordinary after all, the rate of false positives is at most fpr + k/(n + 1)
        instead of `fpr`, for a null of n scores before.

        Args:
            numbers: of reference prompts, as `suspicious` gives them: counted from 0, among all that were generated.

        Raises:
            UsageError: for a number that no reference has, or if fewer than half of the references would be left.
        """
        chosen = {whole_number("number", number) for number in numbers}
        if unknown := sorted(chosen - set(self.numbers)):
            raise UsageError(
                f"got the numbers {', '.join(map(str, unknown))}, which no reference prompt has; give others"
            )
        rows = [row for row, number in enumerate(self.numbers) if number not in chosen]
        left_out = tuple(sorted({*self.left_out, *chosen}))
        if len(left_out) > len(rows):
            raise UsageError(
                f"leaving out {len(left_out)} of {len(rows) + len(left_out)} reference prompts keeps fewer than half; "
                "calibrate on other prompts"
            )
        return replace(
            self,
            runs=self.runs.rows(rows),
            maps={name: values[rows] for name, values in self.maps.items()},
            captions=self.captions.rows(rows) if len(self.captions) else self.captions,
            left_out=left_out,
        )

    def null(self, detector: Detector) -> Tensor:
        """The scores of ordinary images after every evaluation, (n, N).

        Raises:
            UsageError: for a detector that reads what the calibration has not recorded, or that gives no score to some
                of the reference runs.
        """
        # the model that a detector compares with may have changed since
        self.check_detector(detector)
        if (cached := _hashable(detector)) and detector in self._nulls:
            return self._nulls[detector]
        scores = running_scores(detector, self.others, self.references)
        # NaN is allowed only before the evaluation after which the detector has a score
        known = scores[:, detector.earliest(self.evaluations) - 1 :]
        if unknown := int(known.isnan().any(dim=1).sum()):
            raise UsageError(
                f"{detector.name} gives no score to {unknown} of the {len(scores)} reference runs; use another "
                "detector, or check the model's dtype and guidance and calibrate again"
            )
        if cached:
            self._nulls[detector] = scores
        return scores

    def p_value(self, detector: Detector, scores: Tensor, step_index: int = -1) -> Tensor:
        """Conformal p-values of scores (B,) after an evaluation, (B,) float64; NaN for a score of NaN."""
        return conformal_p_values(scores, self.null(detector)[:, self._checked(step_index)])

    def threshold(self, detector: Detector, fpr: float, step_index: int = -1) -> float:
        """The smallest score after an evaluation that is flagged at `fpr`, because its p-value is at most `fpr`.

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
        fitting, null = (self.maps[localizer.name][rows] for rows in self._split)
        return ReferenceMaps(fitting, null)

    def check(self, setup: Setup) -> None:
        """Refuse a set-up other than that of the calibration.

        Raises:
            UsageError: naming everything that differs.
        """
        if unlike := differences(self.fingerprint, setup.fingerprint):
            raise UsageError(
                f"the calibration was made with another set-up: {'; '.join(unlike)}; "
                "use that set-up, or make a calibration for this one with `cryptomnesia calibrate`"
            )

    def check_detector(self, detector: Detector) -> None:
        """Refuse a detector that reads what the calibration has not recorded, or has recorded in another way.

        Raises:
            UsageError: naming what is missing, and what it costs to record it.
        """
        recorded = {**self.runs.norms, **self.runs.signals}
        made = {norm.name: norm_in_words(norm) for norm in detector.norms}
        made |= {signal.name: signal.describe() for signal in detector.signals}
        needed = detector.reads | made.keys()
        if missing := sorted(needed - recorded.keys()):
            raise UsageError(
                f"the calibration has not recorded {', '.join(missing)}, which {detector.name} reads; generate the "
                f"references again with `cryptomnesia calibrate --detector {detector.name}` ({len(self)} images of "
                f"{self.evaluations} evaluations), or use another detector"
            )
        for name, words in made.items():
            self._check_made(name, words)
        if absent := sorted(name for name in needed & self.runs.norms.keys() if recorded[name].isnan().all()):
            raise UsageError(
                f"the calibration's runs have no {', '.join(absent)}, which {detector.name} reads; use another "
                "detector, or calibrate with guidance above 1"
            )

    def check_localizers(self, localizers: Sequence[Localizer], checkpoint: str = "") -> None:
        """Refuse localizers whose maps the calibration does not have, or has made in another way.

        Args:
            localizers: the localizers whose maps are to become masks.
            checkpoint: digest of the weights of the less-trained checkpoint that some maps are compared with; "" if it
                is not known, then those maps are not checked.

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
        if (calibrated := self.made_by.get(name, "otherwise")) != words:
            raise UsageError(f"{name} is {words}, calibrated {calibrated}; use the same settings, or calibrate again")

    def _checked(self, step_index: int) -> int:
        if not -self.evaluations <= step_index < self.evaluations:
            raise UsageError(
                f"got evaluation {step_index} of a run of {self.evaluations}; give one in 0 … {self.evaluations - 1}"
            )
        return step_index

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with what is not a tensor as JSON in its header.

        Raises:
            UsageError: if the file cannot be written.
        """
        tensors = {f"norm/{name}": values for name, values in self.runs.norms.items()}
        tensors |= {f"signal/{name}": values for name, values in self.runs.signals.items()}
        tensors |= {f"map/{name}": values for name, values in self.maps.items()}
        tensors |= {f"captions/{part.name}": getattr(self.captions, part.name) for part in fields(Captions)}
        about = {
            "fingerprint": self.fingerprint,
            "made_by": dict(self.made_by),
            "prompts_sha256": self.prompts_sha256,
            "left_out": list(self.left_out),
            "timesteps": list(self.runs.timesteps),
        }
        save_checked(path, "calibration", FORMAT, about, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            UsageError: for a file that is missing, is no calibration, was edited, or has another format.
        """
        about, tensors = load_checked(path, "calibration", FORMAT)
        try:
            return cls._of(about, tensors)
        # the file is as somebody wrote it, who was not `save`
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UsageError(
                f"{path} holds no calibration ({type(error).__name__}: {error}); make one with `cryptomnesia calibrate`"
            ) from None

    @classmethod
    def _of(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Calibration":
        """The calibration in the parts of a file."""
        kinds: dict[str, dict[str, Tensor]] = {"norm": {}, "signal": {}, "map": {}, "captions": {}}
        for key, values in tensors.items():
            kind, _, name = key.partition("/")
            kinds[kind][name] = values
        count, timesteps = len(kinds["norm"]["z"]), tuple(map(float, about["timesteps"]))
        for key, values in tensors.items():
            if (len(values) != count and not key.startswith("captions/")) or (
                key.startswith("norm/") and values.shape != (count, len(timesteps))
            ):
                raise ValueError(f"{key} has the shape {tuple(values.shape)}, of {count} runs of {len(timesteps)}")
        runs = Trajectory(timesteps, kinds["norm"], {}, torch.empty(count, 0), complete=True, signals=kinds["signal"])
        fingerprint, made_by = dict(about["fingerprint"]), dict(about["made_by"])
        captions, left_out = Captions(**kinds["captions"]), tuple(map(int, about["left_out"]))
        # a calibration that was put together from runs alone knows no captions
        fitting = len(captions.texts) == len(captions.lengths) in (0, count)
        if not fitting or captions.lengths.sum() != len(captions.words):
            raise ValueError(f"its captions are not those of {count} runs")
        if len({*left_out} & {*range(count + len(left_out))}) < len(left_out):
            raise ValueError("it leaves out prompts that were not there")
        return cls(fingerprint, runs, kinds["map"], made_by, str(about["prompts_sha256"]), captions, left_out)


def _hashable(detector: Detector) -> bool:
    """Whether a detector can be the key of a cache: one that is not may change its settings."""
    try:
        hash(detector)
    except TypeError:
        return False
    return True


def split(count: int) -> tuple[list[int], list[int]]:
    """The numbers of `count` reference runs in two random parts, a third and the rest; the same parts at every call."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    cut = count - null_size(count)
    return order[:cut], order[cut:]


def made_in_words(localizer: Localizer, checkpoint: str = "") -> str:
    """Everything that changes a localizer's map, in words; `checkpoint` is the digest of the checkpoint's weights."""
    return f"{localizer.describe()}{f' against {checkpoint[:12]}' if localizer.baseline == 'checkpoint' else ''}"


def norm_in_words(norm: Norm) -> str:
    """Everything that changes a norm's values, in words: `norm.describe()` if it has that, else its name and fields."""
    words: Any = getattr(norm, "describe", None)
    return describe(norm) if words is None else words()


def calibration_of(pipe: Any) -> Path | None:
    """The calibration file in the folder that a pipeline was loaded from, None if there is none."""
    folder = getattr(pipe, "config", {}).get("_name_or_path") or ""
    path = Path(folder) / FILE
    return path if folder and path.is_file() else None


def resolved(calibration: Calibration | str | Path | None, pipe: Any) -> Calibration:
    """A calibration that was given as an object, as a file, or not at all.

    In the last case it is the file in the folder that the pipeline was loaded from.

    Raises:
        UsageError: if there is no such file.
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
