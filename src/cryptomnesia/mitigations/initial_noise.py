"""Begin from noise at which the caption pulls less (Han et al., NeurIPS 2025, arXiv:2510.08625, per sample).

Where the caption pulls hard on the noise x_T itself, the run falls into the attraction basin of the memory at once. The
noise is moved down the gradient of ‖Δε(x_T)‖, the distance between the network's outputs with and without the caption,
until it is no larger than usual: the median of the reference runs, unless a target is given. Adam and its settings are
this library's choice.
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.mitigations.noises import Difference, NoiseDescent


@dataclass(frozen=True)
class InitialNoise(NoiseDescent):
    """Gradient descent of ‖Δε(x_T)‖ on the noise x_T."""

    name = "initial-noise"  # type: ignore[override]
    summary = "The same prompt again, from noise on which the caption pulls less."
    source = "arXiv:2510.08625"
    use_when = "You want a baseline. It leaves the prompt alone, and takes gradients of the network."
    avoid_when = "A caption always gives the same picture: it does so from every noise. Memory for gradients is scarce."

    def objective(self, difference: Difference, x: Tensor) -> tuple[Tensor, Tensor]:
        """The distance ‖Δε(x)‖, which is both lowered and measured."""
        distance = difference(x).norm()
        return distance, distance
