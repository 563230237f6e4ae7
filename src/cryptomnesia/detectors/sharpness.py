"""Sharpness (Jeon et al., ICML 2025, arXiv:2412.04140): how the branches' difference grows along itself.

The score is ‖(H_c − H_u)·s_Δ‖₂ at the first evaluation, where H = ∇²log p is the Jacobian of the score s = −ε/σ and
s_Δ = s_c − s_u. With Δ = ε_c − ε_u this is ‖J_Δ·Δ‖/σ², one product with a Jacobian. For networks that predict v or a
flow, Δ is the difference of the predicted values: at a fixed noise level it differs from that of ε by a constant
factor, which at pure noise is 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.base import subtractable, wide
from cryptomnesia.localizers.jacobian.directional import along
from cryptomnesia.pipelines.denoiser import Denoiser, norms
from cryptomnesia.pipelines.inputs import input_rows, together
from cryptomnesia.pipelines.setup import Requirement, Setup
from cryptomnesia.tracing.trajectory import Place, Step, Trajectory


@dataclass(frozen=True)
class Sharpness(Measured):
    """‖J_Δ·Δ‖/σ² at evaluation `step`, ≥ 0, in latent units.

    Attributes:
        step: the evaluation.
    """

    step: Place = 0

    name = "sharpness"
    summary = "How fast the difference between the two branches grows along itself, at the first step."
    source = "arXiv:2412.04140"
    use_when = "You have to decide after a single evaluation, and can afford one more."
    avoid_when = "You can wait: `guidance-mean` costs nothing. The runs have no unconditional branch."

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluation `step`, at which the score is measured."""
        return (self.step,)

    def cost(self, setup: Setup) -> float:
        """One evaluation of both branches."""
        return 1.0

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        step = run.step(self.step)
        difference = Difference(step, denoiser)
        known = subtractable(step.cond, difference.value)
        product = along(difference, step.cond.x, difference.value, scale=step.cond.sigma, value=known)
        return norms(wide(product)) / step.cond.sigma**2


class Difference:
    """The difference of the values that the network predicts with and without the caption, as a function of x.

    Attributes:
        value: at the evaluation itself, (B, C, h, w).
    """

    def __init__(self, step: Step, denoiser: Denoiser) -> None:
        """Take the conditioning from a step of a run with an unconditional branch."""
        assert step.uncond is not None
        assert step.uncond_inputs is not None
        self.step, self.denoiser = step, denoiser
        self.cond, self.uncond = step.cond_inputs, step.uncond_inputs
        self.value = step.cond.value - step.uncond.value

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """The difference at points x (n, …), where point i belongs to image rows[i]."""
        cond, uncond = input_rows(self.cond, rows), input_rows(self.uncond, rows)
        # captions of different lengths do not fit into one batch
        if (both := together(cond, uncond)) is not None:
            values = self.denoiser(torch.cat([x, x]), self.step.level, both).value
            return values[: len(x)] - values[len(x) :]
        return self.denoiser(x, self.step.level, cond).value - self.denoiser(x, self.step.level, uncond).value
