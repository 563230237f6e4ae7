"""Entropy of the attention (Ren et al., ECCV 2024, arXiv:2403.11052): of a memorized caption all tokens are read.

The score is the entropy of the cross-attention over the tokens of the caption, −Σ a·log a, where a is averaged over
places and heads. It is that of the authors' one-step metric E: the first evaluation, and one layer on the network's way
down, the last one at half of the full resolution (the fourth of Stable Diffusion 1). Their metric over several steps
also needs to know which tokens are padding, which a run does not say.

Queries and keys are read in one more evaluation of the conditional branch, as for `bright-ending`.
"""

from dataclasses import dataclass

from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.bright_ending import attention, cross_attention
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory


@dataclass(frozen=True)
class AttentionEntropy(Measured):
    """Entropy of the attention over tokens at evaluation `step`, ≥ 0, in nats.

    Attributes:
        step: the evaluation.
        block: which of the down blocks with cross-attention, counted from 0; the last one if there are fewer.
    """

    step: Place = 0
    block: int = 1

    name = "attention-entropy"
    summary = "How evenly the picture attends to the tokens of its caption, at the first step."
    source = "arXiv:2403.11052"
    use_when = "You compare with it on Stable Diffusion 1 or 2, where it was published."
    avoid_when = "The network is a transformer, which has no cross-attention on its way down, or there are no captions."

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluation `step`, at which the score is measured."""
        return (self.step,)

    def check(self, setup: Setup) -> None:
        """Refuse a network without cross-attention on its way down.

        Raises:
            UsageError: naming the network.
        """
        super().check(setup)
        cross_attention(setup.family.module, self.block)

    def cost(self, setup: Setup) -> float:
        """One evaluation of the conditional branch, half of one of both."""
        return 0.5 if setup.guided else 1.0

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        layers = cross_attention(getattr(denoiser, "module", None), self.block)
        share = attention(denoiser, run.step(self.step), layers[-1:])[0].mean(dim=1)
        return -(share * share.clamp_min(1e-12).log()).sum(dim=1)
