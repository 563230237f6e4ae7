"""Agreement: where does the model say the same when it is asked again?

In the middle of the run, the estimate x̂_0 of the finished picture is noised once more, with other noise of the same
strength, and the network is asked what it sees now. What the caption leaves open comes out differently; what it fixes
comes out the same. With d_k the change of the estimate at question k, the map is 1 / (1 + mean_k Σ_channels d_k²):
near 0 where anything is possible, and 1 where nothing changes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryptomnesia import Localizer, Map
from cryptomnesia.localizers import Watched
from cryptomnesia.localizers.base import finite, over_channels, wide

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class Agreement(Localizer):
    """How little the estimate changes when the network is asked again, in (0, 1].

    Attributes:
        step: the evaluation that is asked about, as a share of the run. Later ones make every picture agree.
        questions: how often the network is asked; the map costs one evaluation of the conditional branch for each.
    """

    step: float = 0.5
    questions: int = 4

    name = "agreement"
    summary = "How little the model's estimate changes at every place when it is asked again with other noise."
    source = "cryptomnesia-example"
    use_when = "There is no unconditional branch and no checkpoint to compare with, and no derivative can be taken."
    avoid_when = (
        "You need a mask with few questions: the map is noisy. Use `settled-detail`, which takes the same variance "
        "from the Jacobian."
    )

    def cost(self, setup: "Setup") -> float:
        """One evaluation of the conditional branch per question, half of one of both branches."""
        return self.questions * (0.5 if setup.guided else 1.0)

    @torch.no_grad()
    def map(self, watched: Watched) -> Map:
        """The map of every image, (B, h, w)."""
        step = watched.trajectory.step(self.step)
        seen = step.cond
        changes = []
        for question in range(self.questions):
            noised = seen.alpha * seen.x0 + seen.sigma * self._noise(watched, seen.x, question)
            again = watched.denoiser(noised.to(seen.x.dtype), step.level, step.cond_inputs)
            changes.append(over_channels(wide(again.x0 - seen.x0) ** 2, step.cond_inputs))
        return Map(1 / (1 + finite(torch.stack(changes).mean(dim=0))))

    def _noise(self, watched: Watched, like: Tensor, question: int) -> Tensor:
        """Noise that depends on the image's own seed, so that a map does not depend on the batch."""
        seeds = watched.seeds or [0] * len(like)
        generators = [torch.Generator().manual_seed(1_000 * seed + question) for seed in seeds]
        noise = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
        return torch.stack(noise).to(like.device)
