"""No guidance until the run has left the attraction basin of the memory (Jain et al., CVPR 2025, arXiv:2411.16738).

Guidance early in a run leads into the attraction basin of a memorized picture; applied later it leads to another one.
Until a transition the guidance is `scale`: 0, the unconditional prediction alone, or a negative number, which leads
away from the memory (the paper's opposite guidance takes −2). The transition is either an evaluation that is fixed, or
the first local minimum of ‖Δε‖, the distance between the two branches, which every image finds for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Correction, Flagged, Prepared, Preparing, Studio
from cryptomnesia.mitigations.blindness import reads_early
from cryptomnesia.pipelines.denoiser import norms
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import Step

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class GuidanceDelay(Preparing):
    """When guidance sets in.

    Attributes:
        until: share of the run without guidance, in [0, 1); None for the first local minimum of ‖Δε‖.
        scale: guidance until then.
    """

    until: float | None = 0.4
    scale: float = 0.0

    name = "guidance-delay"  # type: ignore[override]
    summary = "The same seed again, without guidance in the first part of the run."
    source = "arXiv:2411.16738"
    use_when = "The prompt must stay as it is and embeddings cannot be changed. It costs nothing but the second run."
    avoid_when = (
        "A caption always gives the same picture: later guidance finds it again. A guard refuses it with the default "
        "detector."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the caption is compared."""
        return frozenset({"guidance"})

    def check(self, setup: "Setup") -> None:
        """Refuse a share outside [0, 1).

        Raises:
            UsageError: naming it.
        """
        if self.until is not None and not 0 <= self.until < 1:
            raise UsageError(f"got until={self.until} for {self.name}; give a share of the run from 0 to below 1")

    def blinds(self, detector: "Detector") -> bool:
        """True of detectors that read early evaluations: these look ordinary, and the memory comes back later."""
        return reads_early(detector)

    def cost(self, setup: "Setup") -> float:
        """One more run of the pipeline, in evaluations."""
        return float(setup.sampling.steps)

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Delay the guidance of every image."""
        calls = [image.call for image in flagged]
        return Prepared(calls, Delay(self.until, self.scale), ["with later guidance"] * len(calls))


class Delay(Correction):
    """Gives the solver another guidance until the transition; attributes as of `GuidanceDelay`."""

    def __init__(self, until: float | None, scale: float) -> None:
        """Begin with the next call."""
        self._until, self._scale = until, scale
        self._before: Tensor | None = None
        self._passed = torch.zeros(0, dtype=torch.bool)

    def steer(self, step: Step, solver: SolverStep) -> Tensor | None:
        """The prediction with the other guidance, for images whose transition is still to come."""
        if step.index == 0:
            self._before = None
            self._passed = torch.zeros(len(step.sample), dtype=torch.bool, device=step.sample.device)
        if step.uncond is None:
            return None
        difference = step.cond.value - step.uncond.value
        if self._until is not None:
            self._passed[:] = step.index >= self._until * step.planned
        else:
            distance = norms(difference)
            if self._before is not None:
                self._passed |= distance > self._before
            self._before = distance
        if self._passed.all():
            return None
        early = step.uncond.value + self._scale * difference
        return torch.where(self._passed.view(-1, *[1] * (early.dim() - 1)), step.guided.value, early)
