"""Caption gap (arXiv:2609.39648): how much more firmly a picture is held with its caption than without it.

The score is log σ_c(x; c) − log σ_c(x; ∅), where σ_c is the critical scale of the generated picture x: the largest
noise level from which the denoiser returns to it (`critical-scale`). Above 0 the unconditional branch knows the picture
less well than the caption does. That is the condition of use of `curvature-difference`, `score-difference` and
`guidance-map`, which are compared with it. Below 0 the condition is not met. A gap of 0 says nothing: both branches
hold the picture equally, or neither does above the least noise level, at which nearly every picture is held.
"""

from dataclasses import dataclass, field

from torch import Tensor

from cryptomnesia.detectors.critical_scale import CriticalScale
from cryptomnesia.detectors.measured import Measured
from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Requirement, Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory


@dataclass(frozen=True)
class CaptionGap(Measured):
    """log σ_c with the caption, less that of the unconditional branch.

    Attributes:
        scale: how σ_c is measured.
    """

    scale: CriticalScale = field(default_factory=CriticalScale)

    name = "caption-gap"
    summary = "How much more firmly the denoiser holds the generated picture with its caption than without it."
    source = "arXiv:2609.39648"
    use_when = (
        "You ask whether a map that is compared with the unconditional branch may be used for a picture: it may if the "
        "gap is above 0, and not if it is below. Or you compare with it."
    )
    avoid_when = "You need an answer online: it takes dozens of evaluations, after the last step."

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluations of the noise levels, from the noisiest to the last."""
        return self.scale.places

    @property
    def requires(self) -> frozenset[Requirement]:
        """A run with an unconditional branch."""
        return frozenset({"guidance"})

    def cost(self, setup: Setup) -> float:
        """Twice that of `critical-scale`: both branches are measured."""
        return 2 * self.scale.cost(setup)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,).

        Raises:
            UsageError: if the run has no unconditional branch.
        """
        last = run.step(-1)
        if last.uncond_inputs is None:
            raise UsageError(f"the run has no unconditional branch, which {self.name} needs; generate with guidance")
        return self.scale.log_scale(run, denoiser, last.cond_inputs) - self.scale.log_scale(
            run, denoiser, last.uncond_inputs
        )
