"""What a mitigation is: it makes another image in place of a flagged one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from cryptomnesia.pipelines.setup import Method
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import Step, Trajectory
from cryptomnesia.verdicts import Verdict

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector


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
    """

    verdict: Verdict
    output: Any = None
    place: int = 0


class Correction(Protocol):
    """Corrects the runs of one call while they go on."""

    def steer(self, step: Step, solver: SolverStep) -> Tensor | None:
        """The prediction that the solver is given in place of `step.guided.value`, None to leave it; see `watch`."""
        ...

    def as_proposed(self, runs: Trajectory) -> Trajectory:
        """The runs with the norms that the mitigation alters as the solver proposed them, before the correction."""
        ...

    def outcome(self, row: int) -> tuple[str, tuple[int, ...]]:
        """How strongly the run of image `row` was corrected, and at which evaluations."""
        ...


class Studio(Protocol):
    """Makes images with the pipeline's own call and judges them; mitigations and policies get one."""

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

    def first_scores(self, calls: Sequence[Mapping[str, Any]], evaluations: int, detector: "Detector") -> Tensor:
        """The scores (B,) after the first evaluations of the runs of several calls, NaN where there is no score.

        The runs end after these evaluations, and no images are made.
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
