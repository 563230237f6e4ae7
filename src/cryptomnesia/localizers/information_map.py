"""Information map: how many nats the caption tells about every place while noise still hides it.

A method of this library: the map of the detector `information`. At every place it is the integral
½∫Σ_channels (ε_c − ε_u)² d log snr, up to a signal-to-noise ratio of 1. All evaluations that it needs are part of the
run, so it costs nothing. Its unit is the same in all pictures and models.
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.localizers.base import Localizer, Map, Watched, finite, over_channels, wide
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.information import gained, log_snr, noise_scale
from cryptomnesia.tracing.trajectory import Place, Step, evaluation


@dataclass(frozen=True)
class InformationMap(Localizer):
    """½∫Σ_channels (ε_c − ε_u)² d log snr, in nats.

    Attributes:
        points: number of evaluations, spread over the run, between which the integral is made of trapezoids.
    """

    points: int = 20

    name = "information-map"  # type: ignore[override]
    summary = "How many nats the caption tells about every place while noise still hides it."
    source = "this library, from arXiv:2407.21720 and arXiv:2310.07972"
    use_when = "You want a map that costs nothing beyond the generation, in a unit that means something."
    avoid_when = (
        "You need a mask of what is memorized: details carry the information, and plain parts of a memorized picture "
        "carry little. Use `collapse`."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """Evaluations that are spread over the run."""
        return tuple(number / self.points for number in range(self.points))

    def map(self, watched: Watched) -> Map:
        """The nats at every place of every image, (B, h, w), ≥ 0."""
        run = watched.trajectory
        numbers = sorted({evaluation(place, len(run.timesteps)) for place in self.evaluations})
        differences = [_difference(run.step(number)) for number in numbers]
        parts = [gained(before, here) for before, here in zip([None, *differences[:-1]], differences, strict=True)]
        return Map(finite(sum(parts[1:], parts[0])))


def _difference(step: Step) -> tuple[float, Tensor]:
    """The log snr, and Σ_channels (ε_c − ε_u)² at every place, (B, h, w)."""
    assert step.uncond is not None
    difference = noise_scale(step.cond) * wide(step.cond.value - step.uncond.value)
    return log_snr(step.cond), over_channels(difference**2, step.cond_inputs)
