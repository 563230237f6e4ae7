"""The judges of a guard, one for every calibration: which of them fits a call?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import Calibration, resolved
from cryptomnesia.detectors import Detector
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations import mitigation as mitigation_of
from cryptomnesia.mitigations.base import check_fit
from cryptomnesia.pipelines.fingerprint import Fingerprint, differences, model_fingerprint
from cryptomnesia.pipelines.setup import Setup

Unknown = Literal["raise", "allow", "block"]
"""What becomes of a call that no calibration fits: it is refused, its images are returned, or they are withheld."""

Given = Calibration | str | Path
"""A calibration as an object or as a file."""

_LASTING = ("version", "records", "weights")
"""The parts of a fingerprint that no setting of a pipeline changes."""


class MethodError(UsageError):
    """A calibration fits a call, but the detector or the mitigation cannot work in its set-up."""


class Judges:
    """One judge for every calibration of a guard.

    Attributes:
        calibrations: in the order in which they were given.
        detector: gives the scores; with `auto`, that of the first calibration, and every set-up has its own default.
        mitigation: of flagged images, or None.
    """

    def __init__(
        self,
        pipe: Any,
        given: Given | Sequence[Given] | None,
        *,
        detector: str | Any,
        mitigation: str | Any | None,
        fpr: float,
        decide_by: int | None,
        unknown: Unknown,
    ) -> None:
        """Check that the calibrations belong to the pipeline, and that the methods work with each of them.

        Args:
            pipe: the pipeline.
            given: one calibration or several; None for the one in the folder that the pipeline was loaded from.
            detector: name or object.
            mitigation: name or object, None if the policy needs none.
            fpr: false-positive rate at which an image is flagged.
            decide_by: number of evaluations after which an image is judged; all of them by default.
            unknown: the rule for calls that no calibration fits.

        Raises:
            UsageError: saying what does not fit, and of several calibrations to which.
        """
        several = isinstance(given, Sequence) and not isinstance(given, str)
        listed: list[Given | None] = list(given) if several else [given]  # type: ignore[arg-type, list-item]
        if not listed:
            raise UsageError("got no calibration in the list; give at least one, or None for the one beside the model")
        self.calibrations = tuple(resolved(calibration, pipe) for calibration in listed)
        self._names = [
            f"{number}{f' ({path})' if isinstance(path, str | Path) else ''}" for number, path in enumerate(listed, 1)
        ]
        setups = [Setup(pipe, calibration.sampling) for calibration in self.calibrations]
        self._wanted, self._fpr, self._decide_by = detector, fpr, decide_by
        self.detector = detector_of(detector, setups[0])
        self.mitigation = None if mitigation is None else mitigation_of(mitigation, setups[0])
        self._check_different()
        self._judges: dict[tuple[int, str], Judge] = {}
        unlike: list[list[str]] = []
        for number, (name, setup, calibration) in enumerate(zip(self._names, setups, self.calibrations, strict=True)):
            try:
                unlike.append(self._differences(setup, calibration))
                self._judge(number, self._detector(setup))
            except UsageError as error:
                if len(listed) == 1:
                    raise
                raise UsageError(f"calibration {name}: {error}") from None
        if unknown == "raise" and all(unlike):
            raise self._no_fit(unlike)

    def check_model(self, pipe: Any) -> None:
        """Refuse a pipeline around another model; it may be of another class.

        Raises:
            UsageError: for a pipeline of an unknown family, or around another model.
        """
        found = model_fingerprint(pipe)
        _unlike({section: self.calibrations[0].fingerprint.get(section) for section in found}, found)

    def _differences(self, setup: Setup, calibration: Calibration) -> list[str]:
        """What differs between a pipeline and a calibration, apart from the settings of calls.

        Raises:
            UsageError: for another model, or a detector or mitigation that cannot work in the calibration's set-up.
        """
        expected, found = calibration.fingerprint, model_fingerprint(setup.pipe)
        if found["pipeline"] == expected.get("pipeline"):
            found = setup.fingerprint
        else:
            # another class of pipeline around the same model need not take these settings
            expected = {section: value for section, value in expected.items() if section in found}
        unlike = _unlike(expected, found)
        if not unlike:
            self._check_methods(setup, calibration)
        return unlike

    def _detector(self, setup: Setup) -> Detector:
        """The detector of a set-up: the one that was named, or the set-up's default."""
        return detector_of("auto", setup) if self._wanted == "auto" else self.detector

    def _check_methods(self, setup: Setup, calibration: Calibration) -> None:
        """Refuse a set-up in which the detector or the mitigation cannot work."""
        detector = self._detector(setup)
        setup.check([detector, *([] if self.mitigation is None else [self.mitigation])])
        if self.mitigation is not None:
            check_fit(self.mitigation, detector, calibration, setup)

    def _judge(self, number: int, detector: Detector) -> Judge:
        """The judge of a calibration with a detector, which is made once."""
        key = number, detector.name
        if key not in self._judges:
            self._judges[key] = Judge(self.calibrations[number], detector, self._fpr, decide_by=self._decide_by)
        return self._judges[key]

    def fitting(self, setup: Setup) -> Judge:
        """The judge whose calibration was made with this set-up.

        Raises:
            MethodError: if the detector or the mitigation cannot work in the set-up.
            UsageError: if there is none, naming everything that differs from the nearest calibration.
        """
        # this reads the weights, and takes a moment
        found = setup.fingerprint
        unlike = [differences(calibration.fingerprint, found) for calibration in self.calibrations]
        for number, different in enumerate(unlike):
            if not different:
                try:
                    self._check_methods(setup, self.calibrations[number])
                    chosen = self._detector(setup)
                    self.calibrations[number].check_detector(chosen)
                    return self._judge(number, chosen)
                except UsageError as error:
                    raise MethodError(str(error)) from error
        raise self._no_fit(unlike)

    def _check_different(self) -> None:
        seen: list[Fingerprint] = []
        for number, calibration in enumerate(self.calibrations):
            if calibration.fingerprint in seen:
                first = self._names[seen.index(calibration.fingerprint)]
                raise UsageError(
                    f"calibrations {first} and {self._names[number]} were made with the same set-up; give one of them"
                )
            seen.append(calibration.fingerprint)

    def _no_fit(self, unlike: Sequence[list[str]]) -> UsageError:
        """The error for a set-up that differs from every calibration in something."""
        nearest = min(range(len(unlike)), key=lambda number: len(unlike[number]))
        if len(unlike) == 1:
            return _misfit("the calibration was made with another set-up", unlike[0])
        return _misfit(
            f"none of the {len(unlike)} calibrations was made with this set-up; the nearest is {self._names[nearest]}",
            unlike[nearest],
        )


def _unlike(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """What differs between two fingerprints.

    Raises:
        UsageError: if they are of different models.
    """
    unlike = differences(expected, found)
    if any(expected.get(part) != found.get(part) for part in _LASTING):
        raise _misfit("the calibration was made with another set-up", unlike)
    return unlike


def _misfit(what: str, unlike: Sequence[str]) -> UsageError:
    return UsageError(
        f"{what}: {'; '.join(unlike)}; use that set-up, or make a calibration for this one with "
        "`cryptomnesia calibrate`"
    )


def unknown_of(rule: str) -> Unknown:
    """A rule for calls that no calibration fits.

    Raises:
        UsageError: for an unknown one.
    """
    if rule in get_args(Unknown):
        return rule  # type: ignore[return-value]
    raise UsageError(f"got unknown={rule!r}; give 'raise', 'allow' or 'block'")
