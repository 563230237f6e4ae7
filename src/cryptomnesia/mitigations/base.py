"""What a mitigation is: another image in place of a flagged one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from cryptomnesia.registry import Method
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import Step, Trajectory
from cryptomnesia.verdicts import Verdict

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector


@dataclass(frozen=True)
class Flagged:
    """An image that may not be shown as it is.

    Attributes:
        call: arguments of a call of the pipeline that makes this image alone: prompts as lists of one, `generator` in the
            state that gave its noise, where that is known.
        verdict: on the image as it was.
    """

    call: Mapping[str, Any]
    verdict: Verdict


@dataclass(frozen=True)
class Remade:
    """What became of an image that was not shown as it was.

    Attributes:
        verdict: with what was done.
        output: of the pipeline's call that made another image; None if nothing may be shown.
        place: number of the image in that output.
    """

    verdict: Verdict
    output: Any = None
    place: int = 0


class Correction(Protocol):
    """Corrects the runs of one call while they go on."""

    def steer(self, step: Step, solver: SolverStep) -> Tensor | None:
        """The value to give the solver in place of `step.guided.value`, or None; see `watch`."""
        ...

    def as_proposed(self, runs: Trajectory) -> Trajectory:
        """The runs with the norms that the mitigation alters as they would be without its last correction."""
        ...

    def outcome(self, row: int) -> tuple[str, tuple[int, ...]]:
        """The severity of an image's correction, and the evaluations at which its run was corrected."""
        ...


class Studio(Protocol):
    """What a mitigation makes images with: the guarded pipeline's own call, judged."""

    @property
    def references(self) -> Trajectory:
        """Reference runs of the set-up."""
        ...

    @property
    def detector(self) -> "Detector":
        """By which images are judged."""
        ...

    @property
    def batch(self) -> int:
        """Images to make in one call, at most."""
        ...

    def make(
        self, calls: Sequence[Mapping[str, Any]], correction: Correction | None = None
    ) -> tuple[Any, list[Verdict]]:
        """Output and verdicts of one call that makes the images of several, each with its own noise."""
        ...

    def first_scores(self, calls: Sequence[Mapping[str, Any]], evaluations: int, detector: "Detector") -> Tensor:
        """Scores (B,) after the first evaluations of runs that end there, NaN where there is none."""
        ...


class Mitigation(Method, Protocol):
    """Makes another image in place of a flagged one, or corrects a run while it goes on.

    Subclass this protocol: then `name` and `remake` are all that a mitigation has to define.

    Attributes:
        alters: names of the norms that a correction sets itself. A detector that reads one of them cannot tell whether
            the correction helped.
    """

    alters: frozenset[str] = frozenset()

    def correction(self, references: Trajectory) -> Correction | None:
        """What corrects the runs of one call, None for a mitigation that makes images again instead."""
        return None

    @abstractmethod
    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make flagged images again, all of them together.

        Returns:
            One for each, in their order, `withheld` where nothing may be shown.
        """
        ...


def withheld(verdict: Verdict, why: str = "") -> Verdict:
    """The verdict on an image that is not shown."""
    return replace(verdict, action="withheld", reason="; ".join(filter(None, (verdict.reason, why, "withheld"))))


def corrected(verdict: Verdict, correction: Correction, *, telling: bool) -> Verdict:
    """The verdict on an image with what a correction did to its run.

    A run that cannot be judged is not mended by a correction.

    Args:
        verdict: on the corrected run.
        correction: that corrected it.
        telling: whether the score tells if the correction helped: it does not if it is made from what the correction sets.
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
    """Why an image is not shown although its run was under a correction."""
    if not verdict.flagged:
        return ""
    return "still flagged after correction" if verdict.corrected else "the rule corrected nothing"
