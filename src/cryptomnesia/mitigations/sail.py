"""Begin from noise at which the density is less sharp (SAIL; Jeon et al., ICML 2025, arXiv:2412.04140).

The noise x is moved down the gradient of ‖Δε(x + Δε(x)/‖Δε(x)‖)‖ + λ‖x‖. The first term is large where the difference
between the branches grows along its own direction, which is how sharp the density with the caption is against that
without it. The paper takes λ = 0.05 and at most ten steps of Adam. It differs from the
paper in three ways. It ends when ‖Δε‖ is no larger than usual, the median of the reference runs, unless a target is
given; the paper ends at a value of the sum. The direction Δε/‖Δε‖ is held fixed in the gradient. Δε is the difference
of the network's outputs, whatever they predict.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cryptomnesia.mitigations.noises import Difference, NoiseDescent

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class Sail(NoiseDescent):
    """Gradient descent of sharpness on the noise.

    Attributes:
        weight: λ, of the length of the noise.
    """

    weight: float = 0.05

    name = "sail"  # type: ignore[override]
    summary = "The same prompt again, from noise at which the caption makes the density less sharp."
    source = "arXiv:2412.04140"
    use_when = "You want a baseline. It leaves the prompt alone, and takes gradients of the network."
    avoid_when = "A caption always gives the same picture: it does so from every noise. Memory for gradients is scarce."

    def objective(self, difference: Difference, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of both terms, and ‖Δε(x)‖."""
        direction = difference(x).detach()
        ahead = difference(x + direction / direction.norm().clamp_min(1e-12))
        return ahead.norm() + self.weight * x.norm(), direction.norm()

    def cost(self, setup: "Setup") -> float:
        """One run, two first evaluations, and about four evaluations for every step."""
        return super().cost(setup) + self.most
