"""What a mitigation is: it makes another image in place of a flagged one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.setup import Method, overridable
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import Step, Trajectory
from cryptomnesia.tracing.watching import Keep
from cryptomnesia.verdicts import Verdict

if TYPE_CHECKING:
    from cryptomnesia.calibration.stored import Calibration
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.localizers.base import Localizer
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class Flagged:
    """A flagged image, which may not be shown.

    Attributes:
        call: arguments of a call of the pipeline that makes this image alone. Prompts are lists of one; `generator` is
            in the state from which the image's noise was drawn, if that is known.
        verdict: the verdict on the image.
    """

    call: Mapping[str, Any]
    verdict: Verdict


@dataclass(frozen=True)
class Remade:
    """What a mitigation or a policy made of a flagged image.

    Attributes:
        verdict: the verdict on the image, with what was done about it.
        output: the output of the pipeline's call that made another image; None if no image may be shown.
        place: number of the other image in that output.
        step: which step of a policy gave this result, in a few words; "" where there is nothing to say.
    """

    verdict: Verdict
    output: Any = None
    place: int = 0
    step: str = ""


class Correction:
    """Corrects the runs of one call while they go on.

    Subclass it: what is not defined leaves the runs as they are.
    """

    @property
    def changes_captions(self) -> bool:
        """Whether `condition` is defined."""
        return type(self).condition is not Correction.condition

    def around(self, pipe: Any) -> AbstractContextManager[Any]:
        """What is entered around the call of the pipeline, for instance to change a layer of its network."""
        return nullcontext()

    def condition(self, index: int, inputs: Inputs) -> Inputs | None:
        """The conditioning of the conditional branch at an evaluation, None to leave it.

        Args:
            index: number of the evaluation, from 0.
            inputs: what the pipeline gives the network, for all images of the call.
        """
        return None

    def steer(self, step: Step, solver: SolverStep) -> Tensor | None:
        """The prediction that the solver is given in place of `step.guided.value`, None to leave it; see `watch`."""
        return None

    def as_proposed(self, runs: Trajectory) -> Trajectory:
        """The runs with the norms that the mitigation alters as the solver proposed them, before the correction."""
        return runs

    def outcome(self, row: int) -> tuple[str, tuple[int, ...]]:
        """How strongly the run of image `row` was corrected, and at which evaluations."""
        return "none", ()


class Studio(Protocol):
    """Makes images with the pipeline's own call and judges them; mitigations and policies get one."""

    @property
    def setup(self) -> "Setup":
        """The pipeline, and the settings of the calls that the calibration is for."""
        ...

    @property
    def calibration(self) -> "Calibration":
        """The calibration of the set-up."""
        ...

    @property
    def references(self) -> Trajectory:
        """Reference runs of the set-up."""
        ...

    @property
    def detector(self) -> "Detector":
        """The detector by which images are judged."""
        ...

    @property
    def batch(self) -> int:
        """The most images to make in one call."""
        ...

    def make(
        self, calls: Sequence[Mapping[str, Any]], correction: Correction | None = None
    ) -> tuple[Any, list[Verdict]]:
        """Make the images of several calls in one call, every image from its own noise.

        Returns:
            The output of that call, and a verdict for every image in it.
        """
        ...

    def first(
        self,
        calls: Sequence[Mapping[str, Any]],
        evaluations: int | None = None,
        *,
        keep: Keep = (0,),
        correction: Correction | None = None,
    ) -> Trajectory:
        """The first evaluations of the runs of several calls, all by default; no images are made.

        Args:
            calls: the calls.
            evaluations: after how many the runs end.
            keep: evaluations whose tensors are kept.
            correction: corrects the runs.
        """
        ...


class Mitigation(Method, Protocol):
    """Makes another image in place of a flagged one, or corrects a run while it goes on.

    Subclass this protocol: then `name` and `remake` are all that a mitigation has to define.

    Attributes:
        alters: names of the norms that the correction sets to values of its choice. A detector that reads one of them
            cannot tell whether the correction helped.
    """

    alters: frozenset[str] = frozenset()

    def blinds(self, detector: "Detector") -> bool:
        """Whether a run under the mitigation looks ordinary to a detector although its picture may be a copy.

        Such a detector would let every copy pass, so a guard refuses the two together.
        """
        return False

    @overridable
    def stronger(self) -> "Mitigation | None":
        """The same mitigation with a stronger setting, None if it has none."""
        return None

    def maps(self, setup: "Setup") -> "list[Localizer]":
        """The localizers whose maps it takes; the calibration has to have reference maps of them."""
        return []

    def correction(self, references: Trajectory) -> Correction | None:
        """A new correction for the runs of one call; None if the mitigation does not correct runs."""
        return None

    @abstractmethod
    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make the flagged images of one call again.

        Returns:
            One result for every image, in their order; without an output where no image may be shown.
        """
        ...


class Prepared(NamedTuple):
    """How flagged images are made again.

    Attributes:
        calls: one per image.
        correction: of the runs of these calls, or None.
        notes: what is different, one text per image, "" where there is nothing to say.
        dropped: the words that have no influence any more, for every image.
        hopeless: why an image cannot be made again, by its number.
    """

    calls: list[Mapping[str, Any]]
    correction: Correction | None = None
    notes: Sequence[str] = ()
    dropped: Sequence[tuple[str, ...]] = ()
    hopeless: Mapping[int, str] = MappingProxyType({})


class Preparing(Mitigation, Protocol):
    """A mitigation that knows, before it makes an image again, how that will be made.

    Subclass this protocol: then `name` and `prepare` are all that it has to define.
    """

    @abstractmethod
    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """How the flagged images of one call, at least one, are made again."""
        ...

    def from_same_noise(self) -> "Preparing":
        """The mitigation as one that starts from the noise of the flagged images; itself by default."""
        return self

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make the images again; those that are flagged then are withheld."""
        return made(self.prepare(flagged, studio), flagged, studio) if flagged else []


def made(prepared: Prepared, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
    """The flagged images, made as was prepared, in one call; those that are flagged again are withheld."""
    rows = [row for row in range(len(flagged)) if row not in prepared.hopeless]
    done = {row: Remade(withheld(flagged[row].verdict, why)) for row, why in prepared.hopeless.items()}
    output, verdicts = studio.make([prepared.calls[row] for row in rows], prepared.correction) if rows else (None, [])
    for place, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        note = prepared.notes[row] if prepared.notes else ""
        found = replace(
            flagged[row].verdict,
            severity=verdict.severity,
            corrected=verdict.corrected,
            dropped=prepared.dropped[row] if prepared.dropped else (),
        )
        if verdict.clean or verdict.action == "mitigated":
            why = f"{note}: p = {verdict.p_value:.3g}" if note else "mitigated"
            found = replace(found, action="mitigated", reason=f"{found.reason}; {why}")
            done[row] = Remade(found, output, place)
        else:
            again = f"{note or 'made again'}: still {verdict.answer}, p = {verdict.p_value:.3g}"
            done[row] = Remade(withheld(found, why_uncorrected(verdict) if verdict.corrected else again))
    return [done[row] for row in range(len(flagged))]


def check_fit(mitigation: Mitigation, detector: "Detector", calibration: "Calibration", setup: "Setup") -> None:
    """Refuse a detector that a mitigation blinds, and a calibration without the reference maps that it needs.

    Raises:
        UsageError: saying what does not fit.
    """
    check_sight(mitigation, detector)
    calibration.check_localizers(mitigation.maps(setup))


def check_sight(mitigation: Mitigation, detector: "Detector") -> None:
    """Refuse a detector that a mitigation blinds.

    Raises:
        UsageError: naming both.
    """
    if mitigation.blinds(detector):
        raise UsageError(
            f"{detector.name} reads {', '.join(sorted(detector.reads))}, which {mitigation.name} makes ordinary "
            "although the picture may be a copy; use another mitigation, or another detector"
        )


def withheld(verdict: Verdict, why: str = "") -> Verdict:
    """The verdict on an image that is not shown, with the reason."""
    return replace(verdict, action="withheld", reason="; ".join(filter(None, (verdict.reason, why, "withheld"))))


def corrected(verdict: Verdict, correction: Correction, *, telling: bool) -> Verdict:
    """The verdict on an image whose run was under a correction, with what the correction did.

    An image counts as mitigated if its run was corrected and is not flagged. It also does so if the score cannot tell
    whether the correction helped. A run that could not be judged stays one.

    Args:
        verdict: on the corrected run.
        correction: corrected the run.
        telling: whether the score tells if the correction helped; it does not if it reads norms that the correction
            sets.
    """
    helped = verdict.clean or (verdict.flagged and not telling)
    severity, evaluations = correction.outcome(verdict.image)
    return replace(
        verdict,
        severity=severity,
        corrected=evaluations,
        action="mitigated" if evaluations and helped else "none",
    )


def why_uncorrected(verdict: Verdict) -> str:
    """Why an image is not shown although its run was under a correction; "" if that is in the verdict already."""
    if not verdict.flagged:
        return ""
    return "still flagged after correction" if verdict.corrected else "the correction changed nothing"
