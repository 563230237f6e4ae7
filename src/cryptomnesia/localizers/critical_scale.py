"""Local critical scale (arXiv:2609.39648): up to which noise level the denoiser leaves a place of the picture as it is.

With D_σ the denoiser at the noise level σ of the variance-exploding form, a place p of a picture x is retained at σ if
iterating the denoiser from x, without adding noise, stays near it there: ‖D_σ^k(x)_p − x_p‖ ≤ r·‖x_p‖ for k ≤ K, with
norms over the channels. The critical scale σ_c is the largest σ at which the place is retained. The map is log σ_c,
less the logarithm of the level that would lie one step below the least.

The noise levels are those of evaluations of the run that are spread evenly over it. Levels are tried one after the
other: whether a place is retained depends on all others, so no search by bisection serves all places at once.
"""

import math
from dataclasses import dataclass

import torch

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import Localizer, Map, Watched, finite, over_channels, wide
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Place, evaluation


@dataclass(frozen=True)
class LocalCriticalScale(Localizer):
    """log σ_c at every place above the least level, ≥ 0; 0 where no level retains the place.

    Attributes:
        iterations: K, applications of the denoiser at every level.
        radius: r, the distance up to which a place is retained, relative to its norm over the channels.
        levels: number of noise levels.
    """

    iterations: int = 16
    radius: float = 0.1
    levels: int = 24

    name = "local-critical-scale"  # type: ignore[override]
    summary = "Up to which noise level the denoiser leaves the generated picture as it is, at every place."
    source = "arXiv:2609.39648"
    use_when = "You compare with it, and time does not matter."
    avoid_when = (
        "Parts of the pictures are plain: the denoiser keeps plain parts at every noise level, memorized or not. It "
        "takes up to hundreds of evaluations."
    )

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """The last one, whose picture is iterated from, and those of the noise levels."""
        return -1, *(number / self.levels for number in range(self.levels - 1))

    def cost(self, setup: Setup) -> float:
        """At most K evaluations of the conditional branch for every level."""
        return self.iterations * self.levels * (0.5 if setup.guided else 1.0)

    def check(self, setup: Setup) -> None:
        """Refuse, besides what no map can do, a flow model's run of one evaluation: it sees nothing but noise.

        Raises:
            UsageError: naming the steps that are too few.
        """
        super().check(setup)
        if setup.evaluations == 1 and setup.family.kind == "flow_prediction":
            raise UsageError(f"with 1 step {self.name} would look at pure noise; give more steps")

    @torch.no_grad()
    def map(self, watched: Watched) -> Map:
        """The map of every image, (B, h, w).

        Raises:
            NotFiniteError: if the network's output is not finite for one of the images.
            UsageError: if every evaluation sees nothing but noise.
        """
        run = watched.trajectory
        last = run.step(-1)
        inputs = last.cond_inputs
        numbers = sorted({evaluation(place, len(run.timesteps)) for place in self.evaluations}, reverse=True)
        # at pure noise nothing of the picture would be left in what the network reads
        known = [run.step(number).level for number in numbers if run.step(number).level.alpha > 1e-3]
        # solvers of second order evaluate the network twice at a noise level
        levels = {math.log(level.sigma / level.alpha): level for level in known}
        scales = list(levels)
        if not scales:
            raise UsageError(f"all {len(numbers)} evaluations see nothing but noise; give more steps")
        below = 2 * scales[0] - scales[1] if len(scales) > 1 else scales[0] - 1
        picture = finite(wide(last.guided.x0))
        most = self.radius**2 * over_channels(picture**2, inputs)
        largest = torch.zeros_like(most)
        for scale, level in levels.items():
            retained = torch.ones_like(most, dtype=torch.bool)
            x = picture
            for _ in range(self.iterations):
                x = finite(wide(watched.denoiser((level.alpha * x).to(last.cond.x), level, inputs).x0))
                retained &= over_channels((x - picture) ** 2, inputs) <= most
                if not retained.any():
                    break
            largest = torch.where(retained, scale - below, largest)
        return Map(finite(largest))
