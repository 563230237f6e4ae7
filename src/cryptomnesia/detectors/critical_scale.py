"""Critical scale (arXiv:2609.39648): up to which noise level the denoiser leaves the generated picture where it is.

With D_σ the denoiser at the noise level σ of the variance-exploding form, a picture x is retained at σ if iterating the
denoiser from x, without adding noise, stays near it: ‖D_σ^k(x) − x‖ ≤ r·‖x‖ for k ≤ K. The critical scale σ_c is the
largest σ at which it is retained. The score is log σ_c.

It is searched by bisection among the noise levels of some evaluations of the run, so that a score is one of as many
numbers. Simple pictures are retained from anywhere, so references have to be as plain as what is judged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.base import over_channels, wide
from cryptomnesia.pipelines.denoiser import Denoiser, norms
from cryptomnesia.pipelines.inputs import Inputs, input_rows
from cryptomnesia.pipelines.schedule import Level
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory, evaluation

LOCAL_RADIUS = 0.1
"""r of the criterion for places: a place is retained more narrowly than a whole picture."""


@dataclass(frozen=True)
class CriticalScale(Measured):
    """log σ_c of the final picture with its caption; where it is retained at no level, one level below the least.

    Attributes:
        iterations: K, applications of the denoiser.
        radius: r, the distance from the picture, relative to its norm, up to which it is retained.
        levels: among how many noise levels the largest is searched. A bisection of k steps tells 2ᵏ − 1 of them apart.
    """

    iterations: int = 16
    radius: float = 0.25
    levels: int = 15

    name = "critical-scale"
    summary = "Up to which noise level the denoiser leaves the generated picture where it is."
    source = "arXiv:2609.39648"
    use_when = "You compare with it, or ask how firmly a picture is held, and references as plain as yours are at hand."
    avoid_when = "Pictures differ in complexity: plain ones are held from anywhere. It takes dozens of evaluations."

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluations of the noise levels, from the noisiest to the last."""
        return (*(number / self.levels for number in range(self.levels - 1)), -1)

    def cost(self, setup: Setup) -> float:
        """At most K evaluations of the conditional branch for every step of the bisection."""
        return self.iterations * math.ceil(math.log2(self.levels + 1)) * (0.5 if setup.guided else 1.0)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        return self.log_scale(run, denoiser, run.step(-1).cond_inputs)

    def log_scale(self, run: Trajectory, denoiser: Denoiser, inputs: Inputs) -> Tensor:
        """Log σ_c of the final pictures under any conditioning, (B,); NaN for a picture that is not finite.

        Args:
            run: that made the pictures.
            denoiser: the network.
            inputs: its conditioning for every picture.
        """
        numbers = sorted({evaluation(place, len(run.timesteps)) for place in self.places})
        last = run.step(-1)
        levels = [run.steps[number].level for number in numbers[::-1]]
        picture = wide(last.guided.x0)
        return self.of(picture, levels, denoiser, inputs, last.cond.x.dtype)

    def of(
        self, picture: Tensor, levels: Sequence[Level], denoiser: Denoiser, inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        """Log σ_c of any pictures, (B,); NaN for one that is not finite.

        Args:
            picture: latents (B, …).
            levels: noise levels among which the largest is searched, from the least noise on.
            denoiser: the network.
            inputs: its conditioning for every picture.
            dtype: number format of what the network is given.
        """
        # at pure noise nothing of the picture would be left in what the network reads
        levels = [level for level in levels if level.alpha > 1e-3]
        # of the first `low[i]` levels, counted from the least noise, image i is known to be retained at the last
        low, high = [0] * len(picture), [len(levels)] * len(picture)
        while any(a < b for a, b in zip(low, high, strict=True)):
            middle = [(a + b + 1) // 2 for a, b in zip(low, high, strict=True)]
            for tried in sorted({m for m, a, b in zip(middle, low, high, strict=True) if a < b}):
                rows = [i for i, (m, a, b) in enumerate(zip(middle, low, high, strict=True)) if m == tried and a < b]
                kept = self._retained(picture[rows], levels[tried - 1], denoiser, input_rows(inputs, rows), dtype)
                for row, retained in zip(rows, kept.tolist(), strict=True):
                    if retained:
                        low[row] = tried
                    else:
                        high[row] = tried - 1
        scales, below = _scales(levels)
        found = torch.tensor([below if number == 0 else scales[number - 1] for number in low])
        return torch.where(picture.flatten(1).isfinite().all(dim=1).cpu(), found, torch.nan)

    def local(
        self, picture: Tensor, levels: Sequence[Level], denoiser: Denoiser, inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        """Log σ_c at every place of any pictures, (B, h, w), where a place is retained or not by itself.

        A place is retained at σ if ‖D_σ^k(x) − x‖ ≤ `LOCAL_RADIUS`·‖x‖ for k ≤ K, with norms over the channels there.
        Levels are tried from the most noise on, until all places are retained. Arguments are those of `of`.
        """
        levels = [level for level in levels if level.alpha > 1e-3]
        scales, below = _scales(levels)
        size = LOCAL_RADIUS**2 * over_channels(picture**2, inputs)
        found = torch.full_like(size, below)
        left = torch.ones_like(size, dtype=torch.bool)
        for level, scale in zip(levels[::-1], scales[::-1], strict=True):
            kept = left.clone()
            rows = kept.flatten(1).any(dim=1).nonzero().flatten()
            x = picture[rows]
            for _ in range(self.iterations):
                if not len(rows):
                    break
                conditioning = input_rows(inputs, rows.tolist())
                x = wide(denoiser((level.alpha * x).to(dtype), level, conditioning).x0)
                kept[rows] &= over_channels((x - picture[rows]) ** 2, conditioning) <= size[rows]
                going = kept[rows].flatten(1).any(dim=1)
                rows, x = rows[going], x[going]
            found[kept] = scale
            left &= ~kept
        finite = picture.flatten(1).isfinite().all(dim=1)
        return found.where(finite[:, None, None], torch.nan).cpu()

    def _retained(
        self, picture: Tensor, level: Level, denoiser: Denoiser, inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        """Whether each of n pictures is retained at a level, (n,) bool."""
        size, x = self.radius * norms(picture), picture
        retained = torch.ones(len(picture), dtype=torch.bool, device=picture.device)
        for _ in range(self.iterations):
            x = wide(denoiser((level.alpha * x).to(dtype), level, inputs).x0)
            retained &= norms(x - picture) <= size
            if not retained.any():
                break
        return retained


def _scales(levels: Sequence[Level]) -> tuple[list[float], float]:
    """Log σ/α of every level, and the value of what is retained at none of them: one level below the least."""
    scales = [math.log(level.sigma / level.alpha) for level in levels]
    return scales, 2 * scales[0] - scales[1] if len(scales) > 1 else scales[0] - 1
