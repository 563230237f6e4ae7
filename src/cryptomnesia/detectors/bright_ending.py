"""Guidance magnitude where the end token is attended to (Chen et al., ICLR 2025), the detector of Bright Ending.

With m the attention to the caption's end token at the last evaluation, the score is the mean of ‖(ε_c − ε_u) ⊙ m‖₂ over
evaluations, divided by the mean of m. So the guidance magnitude (arXiv:2407.21720) counts where a memorized picture
attends to the end of its caption. The paper takes the first evaluation, the first ten, or all fifty; here the mean is
over eleven evaluations that are spread evenly over the run, so that not all tensors of a run have to be kept.

Like `guidance-mean` it compares the predicted values, which are v or a flow for networks that predict these.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.base import Watched, map_where_finite, wide
from cryptomnesia.localizers.bright_ending import BrightEnding
from cryptomnesia.pipelines.denoiser import Denoiser, norms
from cryptomnesia.pipelines.setup import Requirement, Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory


@dataclass(frozen=True)
class BrightEndingMagnitude(Measured):
    """Mean of ‖(ε_c − ε_u) ⊙ m‖ over evaluations, divided by the mean of m, ≥ 0, in latent units.

    Attributes:
        over: the evaluations of the mean; m is that of the last evaluation of the run.
    """

    over: tuple[Place, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, -1)

    name = "bright-ending"
    summary = "Guidance magnitude where the picture attends to the caption's end token at the last step."
    source = "Chen et al., ICLR 2025"
    use_when = "You compare with it on Stable Diffusion 1 or 2, where it was published."
    avoid_when = (
        "The network is a transformer, which has no cross-attention on its way down, or calls give embeddings instead "
        "of captions in words: then there is no score. You want to decide before the end of the run."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, to know where they end, and an unconditional branch."""
        return frozenset({"captions", "guidance"})

    @property
    def observes(self) -> str:
        """The difference of the two branches, as `guidance-mean`: the two do not corroborate each other."""
        return "guidance-mean"

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluations of the mean, and the last one."""
        return *self.over, -1

    def check(self, setup: Setup) -> None:
        """Refuse a network without cross-attention on its way down, and a tokenizer that does not pad at the end.

        Raises:
            UsageError: naming the network, or the tokenizer.
        """
        super().check(setup)
        BrightEnding().check(setup)

    def cost(self, setup: Setup) -> float:
        """That of the map: one evaluation of the conditional branch, half of one of both."""
        return BrightEnding().cost(setup)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,); NaN where the captions are not known in words."""
        if run.prompts is None:
            return torch.full((len(run),), torch.nan)
        watched = Watched(run, denoiser, prompts=run.prompts, pipe=run.pipe)
        ends = map_where_finite(BrightEnding(), watched).values
        found = []
        for place in self.over:
            step = run.step(place)
            if step.uncond is None:
                return torch.full((len(run),), torch.nan)
            difference = wide(step.cond.value) - wide(step.uncond.value)
            found.append(norms(difference * ends.unsqueeze(1)))
        return torch.stack(found).mean(dim=0) / ends.mean(dim=(1, 2))
