"""Pull every run that leaves its stability region back into it while it goes on (arXiv:2605.22050).

δ_t is the update of the latents, z_{t−1} are the latents after it, and μ and σ are the mean and the standard deviation
of a norm over the reference runs at the same evaluation. z-scores are absolute values, as in the paper's step score,
because a region has two sides.

- Trigger: the first step at which the z-scores of both ‖δ_t‖ and ‖x̂_0‖ exceed τ_mild. The severity is *strong* if the
  z-score of ‖x̂_0‖ exceeds τ_strong, else *mild*. It stays for the rest of the run.
- Active: from the trigger on, every step at which the z-score of ‖δ_t‖ exceeds τ_mild; a mild correction ends after k
  evaluations.
- Action: x̂_0 is rescaled to its mean norm, which moves the update by α_{t−1}·(x̂_0′ − x̂_0). If the severity is strong,
  ‖δ_t‖ is then clamped into its region [μ − γσ, μ + γσ]. At last ‖z_{t−1}‖ is clamped into its region.

The latents that result are reached through the prediction (`cryptomnesia.tracing.steering`): the solver is given the
prediction that lands on them, and its arithmetic and its history stay consistent.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cryptomnesia.detectors.base import Moments
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Correction, Flagged, Mitigation, Prepared, Remade, Studio, made
from cryptomnesia.pipelines.denoiser import norms
from cryptomnesia.tracing.steering import SolverStep, check_steerable
from cryptomnesia.tracing.trajectory import Step, Trajectory
from cryptomnesia.tracing.watching import Watch, watch

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup

SEVERITIES = ("none", "mild", "strong")


@dataclass(frozen=True)
class Regions:
    """The stability regions: mean and standard deviation of norms over reference runs, at every evaluation.

    Attributes:
        delta: moments of ‖δ_t‖, the update.
        z: moments of ‖z_{t−1}‖, the latents after the step.
        x0: moments of ‖x̂_0‖.
    """

    delta: Moments
    z: Moments
    x0: Moments

    @classmethod
    def of(cls, references: Trajectory) -> "Regions":
        """The regions of reference runs, at least two."""
        return cls(*(Moments.of(references.norms[name]) for name in ("delta", "z", "x0")))


@dataclass(frozen=True)
class StabilityRule(Mitigation):
    """The rule of arXiv:2605.22050; its defaults are the paper's setting for Stable Diffusion at 50 steps.

    Attributes:
        tau_mild: τ_mild, in standard deviations.
        tau_strong: τ_strong, in standard deviations.
        gamma: γ, half the width of a region in standard deviations.
        k: number of evaluations after which a mild correction ends.
    """

    tau_mild: float = 3.0
    tau_strong: float = 14.0
    gamma: float = 3.0
    k: int = 10

    name = "stability-published"  # type: ignore[override]
    summary = "Pulls the norms of a run that leaves its usual range back into it, while the run goes on."
    source = "arXiv:2605.22050"
    use_when = (
        "The prompt must stay as it is and a second run is too expensive: it costs no evaluation. Check on your model "
        "that memorized runs trigger it, and look at the pictures."
    )
    avoid_when = (
        "You have not measured it on your model: on the bundled model it prevents no reproduction. Where it acts, look "
        "for the layout of the memorized picture, which can stay with other colours."
    )
    alters = frozenset({"delta"})

    def check(self, setup: "Setup") -> None:
        """Refuse a solver that cannot be steered.

        Raises:
            UsageError: naming the solver.
        """
        check_steerable(setup.pipe.scheduler)

    def cost(self, setup: "Setup") -> float:
        """One more run for an image that was flagged in a run without correction."""
        return float(setup.sampling.steps)

    def correction(self, references: Trajectory) -> "StabilityCorrection":
        """A correction for the runs of one call."""
        return StabilityCorrection(references, self)

    def remake(self, flagged: Sequence[Flagged], studio: Studio) -> list[Remade]:
        """Make the images once more with the same calls, correcting the runs while they go on."""
        return made(self.prepare(flagged, studio), flagged, studio) if flagged else []

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """The same calls, under the correction."""
        return Prepared([image.call for image in flagged], self.correction(studio.references))

    def apply(
        self,
        *,
        z: Tensor,
        after: Tensor,
        x0: Tensor,
        alpha_after: float,
        regions: Regions,
        index: int,
        severity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the rule for B images.

        Args:
            z: latents before the step, (B, C, h, w).
            after: latents the solver would reach, (B, C, h, w).
            x0: x̂_0 of the guided prediction, (B, C, h, w).
            alpha_after: α_{t−1}.
            regions: moments of the norms at every evaluation.
            index: number of the evaluation.
            severity: (B,) int64: 0 not triggered so far, 1 mild, 2 strong.

        Returns:
            The wanted latents (B, C, h, w), whether the rule acted on each image (B,) bool, and the new severity.
        """
        delta = after - z
        delta_score = _z_score(regions.delta, index, norms(delta))
        x0_score = _z_score(regions.x0, index, norms(x0))
        triggered = (severity == 0) & (delta_score > self.tau_mild) & (x0_score > self.tau_mild)
        severity = torch.where(triggered, 1 + (x0_score > self.tau_strong).long(), severity)
        strong = severity == 2
        active = (delta_score > self.tau_mild) & (strong | ((severity == 1) & (index < self.k)))

        target = regions.x0.mean[index].to(x0)
        delta = delta + alpha_after * (_rescaled(x0, target) - x0)
        clamped = _rescaled(delta, self._into_region(regions.delta, index, norms(delta)))
        delta = torch.where(_over(strong, delta), clamped, delta)
        wanted = z + delta
        wanted = _rescaled(wanted, self._into_region(regions.z, index, norms(wanted)))
        return torch.where(_over(active, wanted), wanted, after), active, severity

    def _into_region(self, moments: Moments, index: int, values: Tensor) -> Tensor:
        """Norms (B,) clamped into the region of an evaluation."""
        mean, width = moments.mean[index].to(values), self.gamma * moments.std[index].to(values)
        return values.clamp(mean - width, mean + width)


class StabilityCorrection(Correction):
    """Applies the rule to the runs of a call; its attributes and results are about the newest call.

    Attributes:
        references: the reference runs.
        rule: the rule.
        severity: (B,) int64: 0 never triggered, 1 mild, 2 strong.
    """

    def __init__(self, references: Trajectory, rule: StabilityRule | None = None) -> None:
        """Compare runs with `references`; corrections begin when `watch` is given `steer`, as `stabilize` does."""
        self.references = references
        self.rule = rule or StabilityRule()
        self.severity = torch.zeros(0, dtype=torch.long)
        self._active: list[Tensor] = []
        self._proposed: list[Tensor | None] = []

    @cached_property
    def regions(self) -> Regions:
        """The stability regions of the reference runs."""
        return Regions.of(self.references)

    def outcome(self, row: int) -> tuple[str, tuple[int, ...]]:
        """The severity for image `row`, and the evaluations at which its run was corrected."""
        return SEVERITIES[int(self.severity[row])], tuple(self.active[row].nonzero().flatten().tolist())

    @property
    def active(self) -> Tensor:
        """Whether an image was corrected at an evaluation, (B, N) bool."""
        return torch.stack(self._active, dim=1).cpu() if self._active else torch.zeros(0, 0, dtype=torch.bool)

    def as_proposed(self, runs: Trajectory) -> Trajectory:
        """The runs with ‖δ‖ as the solver proposed it at every evaluation, before the correction.

        A corrected update lies in its region, so only the proposed update shows how far a run left it.
        """
        delta = runs.norms["delta"].clone()
        for index, proposed in enumerate(self._proposed):
            if proposed is not None:
                delta[:, index] = proposed.cpu()
        return replace(runs, norms={**runs.norms, "delta": delta})

    def steer(self, step: Step, solver: SolverStep) -> Tensor | None:
        """The prediction (B, C, h, w) that leads to the latents that the rule wants, None if it changes nothing."""
        if step.planned != len(self.references.timesteps):
            raise UsageError(
                f"the run has {step.planned} evaluations, the calibration {len(self.references.timesteps)}; "
                "calibrate with the same number of steps"
            )
        guided = step.guided
        if step.index == 0:
            self.severity = torch.zeros(len(step.sample), dtype=torch.long, device=step.sample.device)
            self._active, self._proposed = [], []
        x0_score = _z_score(self.regions.x0, step.index, norms(guided.x0))
        if not (self.severity.bool() | (x0_score > self.rule.tau_mild)).any():
            # at most steps of most runs no image can be active, and the solver need not be tried
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
            regions=self.regions,
            index=step.index,
            severity=self.severity,
        )
        active &= torch.isfinite(norms(after))
        if not active.any():
            self._active.append(active)
            return None
        landed = solver.landing(guided.value, after, wanted)
        # a step that cannot be steered corrects nothing
        self._active.append(torch.zeros_like(active) if landed is guided.value else active)
        # an image on which the rule does not act keeps its prediction to the last bit
        return torch.where(_over(active, after), landed, guided.value)


@contextmanager
def stabilize(
    pipe: Any, references: Trajectory, rule: StabilityRule | None = None
) -> Iterator[tuple[StabilityCorrection, Watch]]:
    """Correct the runs of all generations that `pipe` makes inside the block.

    Args:
        pipe: a pipeline of a known family, with a scheduler that can be steered.
        references: reference runs in the same set-up, the `references` of its `Calibration` for instance.
        rule: the rule with its thresholds; the paper's by default.

    Yields:
        The correction, which knows what it did, and the record of the corrected runs.

    Raises:
        UsageError: for a scheduler that cannot be steered, or a run whose number of evaluations is not that of the
            references.
    """
    check_steerable(pipe.scheduler)
    correction = StabilityCorrection(references, rule)
    with watch(pipe, steer=correction.steer) as seen:
        yield correction, seen


def _z_score(moments: Moments, index: int, values: Tensor) -> Tensor:
    """The distance of values (B,) from the mean at an evaluation, in standard deviations, (B,) ≥ 0."""
    return (values - moments.mean[index].to(values)).abs() / moments.std[index].to(values)


def _over(mask: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) in a shape that broadcasts with `like` (B, …)."""
    return mask.view(-1, *([1] * (like.dim() - 1)))


def _rescaled(x: Tensor, norm: Tensor) -> Tensor:
    """`x` (B, …) with every sample's norm set to `norm`, () or (B,)."""
    return x * _over((norm / norms(x)).to(x.dtype).expand(len(x)), x)
