"""Pull a generation back into its stability region (arXiv:2605.22050), while it runs, per image.

With z-scores taken against the reference of the same evaluation:

- Trigger: the first step at which the z-scores of both ‖δ_t‖ and ‖x̂_0‖ exceed τ_mild. Severity is
  *strong* if that of ‖x̂_0‖ exceeds τ_strong, else *mild*, and is kept for the rest of the run.
- Active: from the trigger on, at every step where the z-score of ‖δ_t‖ exceeds τ_mild and (strong, or
  mild and t < k).
- Action: x̂_0 is rescaled to the reference's mean norm, which moves the update by
  α_{t−1}·(x̂_0′ − x̂_0); strong only: ‖δ_t‖ is clamped into its region [μ − γσ, μ + γσ]; then ‖z_{t−1}‖
  is clamped into its own.

z-scores are absolute, as in the paper's step score: a region has two sides.

The wanted latents are reached through the prediction (`cryptomnesia.tracing.steering`): the one that lands on them
is handed to the solver, whose own arithmetic and history stay in charge.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Moments, Reference
from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import norms
from cryptomnesia.tracing.steering import SolverStep, check_steerable
from cryptomnesia.tracing.trajectory import Step, Trajectory
from cryptomnesia.tracing.watching import Watch, watch


@dataclass(frozen=True)
class StabilityRule:
    """The paper's setting for SD at 50 steps: τ_mild = 3, τ_strong = 14, γ = 3, k = 10."""

    tau_mild: float = 3.0
    tau_strong: float = 14.0
    gamma: float = 3.0
    k: int = 10

    def apply(
        self,
        *,
        z: Tensor,
        after: Tensor,
        x0: Tensor,
        alpha_after: float,
        reference: Reference,
        index: int,
        severity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the rule for B images.

        Args:
            z: latents before the step, (B, C, h, w).
            after: latents the solver would reach, (B, C, h, w).
            x0: x̂_0 of the guided prediction, (B, C, h, w).
            alpha_after: α_{t−1}.
            reference: moments of the norms, per evaluation.
            index: number of the evaluation.
            severity: (B,) int64: 0 not triggered so far, 1 mild, 2 strong.

        Returns:
            The wanted latents (B, C, h, w), where the rule acted (B,) bool, and the new severity.
        """
        delta = after - z
        delta_score = _z_score(reference.delta, index, norms(delta))
        x0_score = _z_score(reference.x0, index, norms(x0))
        triggered = (severity == 0) & (delta_score > self.tau_mild) & (x0_score > self.tau_mild)
        severity = torch.where(triggered, 1 + (x0_score > self.tau_strong).long(), severity)
        strong = severity == 2
        active = (delta_score > self.tau_mild) & (strong | ((severity == 1) & (index < self.k)))

        target = reference.x0.mean[index].to(x0)
        delta = delta + alpha_after * (_rescaled(x0, target) - x0)
        clamped = _rescaled(delta, self._into_region(reference.delta, index, norms(delta)))
        delta = torch.where(_over(strong, delta), clamped, delta)
        wanted = z + delta
        wanted = _rescaled(wanted, self._into_region(reference.z, index, norms(wanted)))
        return torch.where(_over(active, wanted), wanted, after), active, severity

    def _into_region(self, moments: Moments, index: int, values: Tensor) -> Tensor:
        mean, width = moments.mean[index].to(values), self.gamma * moments.std[index].to(values)
        return values.clamp(mean - width, mean + width)


class Correction:
    """The rule at work on a pipeline's calls; what it says is of the newest one.

    Attributes:
        severity: (B,) int64: 0 never triggered, 1 mild, 2 strong.
    """

    def __init__(self, reference: Reference, rule: StabilityRule | None = None) -> None:
        """`steer` is to be given to `watch`; `stabilize` does so."""
        self.reference = reference
        self.rule = rule or StabilityRule()
        self.severity = torch.zeros(0, dtype=torch.long)
        self._active: list[Tensor] = []
        self._proposed: list[Tensor | None] = []

    @property
    def active(self) -> Tensor:
        """(B, N) bool, the evaluations at which each image was corrected."""
        return torch.stack(self._active, dim=1).cpu() if self._active else torch.zeros(0, 0, dtype=torch.bool)

    def as_proposed(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory with ‖δ‖ as the solver proposed it at each evaluation, before correction.

        A corrected update lies in its region, so only the proposed ones tell how far a run strayed.
        """
        delta = trajectory.norms.delta.clone()
        for index, proposed in enumerate(self._proposed):
            if proposed is not None:
                delta[:, index] = proposed.cpu()
        return replace(trajectory, norms=replace(trajectory.norms, delta=delta))

    def steer(self, step: Step, solver: SolverStep) -> Tensor | None:
        """The prediction (B, C, h, w) that lands where the rule wants the images, None where it wants nothing."""
        if step.planned != len(self.reference.delta.mean):
            raise UsageError(
                f"the run has {step.planned} evaluations, the calibration {len(self.reference.delta.mean)}; "
                "calibrate with the same number of steps"
            )
        guided = step.guided
        if step.index == 0:
            self.severity = torch.zeros(len(step.sample), dtype=torch.long, device=step.sample.device)
            self._active, self._proposed = [], []
        x0_score = _z_score(self.reference.x0, step.index, norms(guided.x0))
        if not (self.severity.bool() | (x0_score > self.rule.tau_mild)).any():
            # most steps of most runs: nothing can be active, so the solver need not be asked
            self._active.append(torch.zeros_like(x0_score, dtype=torch.bool))
            self._proposed.append(None)
            return None
        after = solver.after(guided.value)
        self._proposed.append(norms(after - step.sample))
        wanted, active, self.severity = self.rule.apply(
            z=step.sample,
            after=after,
            x0=guided.x0,
            alpha_after=solver.alpha_after,
            reference=self.reference,
            index=step.index,
            severity=self.severity,
        )
        active &= torch.isfinite(norms(after))
        if not active.any():
            self._active.append(active)
            return None
        landed = solver.landing(guided.value, after, wanted)
        # where a step cannot be steered nothing was corrected
        self._active.append(torch.zeros_like(active) if landed is guided.value else active)
        # an image that is left alone keeps its own prediction to the last bit
        return torch.where(_over(active, after), landed, guided.value)


@contextmanager
def stabilize(pipe: Any, reference: Reference, rule: StabilityRule | None = None) -> Iterator[tuple[Correction, Watch]]:
    """Correct the generations that `pipe` makes inside the block.

    Args:
        pipe: a pipeline of a known family, with a scheduler that can be steered.
        reference: stability regions, from a `Calibration` of this very setup.
        rule: thresholds; the paper's by default.

    Yields:
        What the rule did, and the record of the corrected runs.

    Raises:
        UsageError: for a scheduler that cannot be steered, or a run whose number of evaluations is not
            the reference's.
    """
    check_steerable(pipe.scheduler)
    done = Correction(reference, rule)
    with watch(pipe, steer=done.steer) as seen:
        yield done, seen


def _z_score(moments: Moments, index: int, values: Tensor) -> Tensor:
    return (values - moments.mean[index].to(values)).abs() / moments.std[index].to(values)


def _over(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *([1] * (like.dim() - 1)))


def _rescaled(x: Tensor, norm: Tensor) -> Tensor:
    """`x` (B, …) with every sample's norm set to `norm`, () or (B,)."""
    return x * _over((norm / norms(x)).to(x.dtype).expand(len(x)), x)
