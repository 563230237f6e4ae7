"""Entropy of the attention over tokens (Ren et al., ECCV 2024, arXiv:2403.11052): in the paper it is high if memorized.

The entropy of the cross-attention over the tokens of the caption is −Σ a·log a, where a is averaged over places and
heads. The paper has two scores, both from one layer on the network's way down, the last one at half of the full
resolution (the fourth of Stable Diffusion 1):

- `attention-entropy` is the metric E of one step: the entropy at the first evaluation.
- `attention-entropy-late` is the metric D of several steps. Over the last fifth of the run it is the mean entropy
  plus the distance between the part of the summary tokens, which are the end token and the padding behind it, and
  their part at the first evaluation. The paper takes every evaluation of that fifth; here five of them are taken.

Queries and keys are read in one more evaluation of the conditional branch for every place: one for
`attention-entropy`, six for `attention-entropy-late`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.bright_ending import attention, check_tokenizer, cross_attention, end_positions
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Requirement, Setup
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
        return _terms(run, denoiser, self.step, self.block).sum(dim=1)


@dataclass(frozen=True)
class AttentionEntropyLate(Measured):
    """Mean entropy of the attention over late evaluations, and how far that of the summary moved, ≥ 0, in nats.

    Attributes:
        late: the evaluations of the mean.
        block: which of the down blocks with cross-attention, counted from 0; the last one if there are fewer.
    """

    late: tuple[Place, ...] = (0.8, 0.85, 0.9, 0.95, -1)
    block: int = 1

    name = "attention-entropy-late"
    summary = "How evenly the picture attends to the tokens of its caption late in the run, and how that moved."
    source = "arXiv:2403.11052"
    use_when = "You compare with it on Stable Diffusion 1 or 2, where it was published."
    avoid_when = (
        "The network is a transformer, which has no cross-attention on its way down, or calls give embeddings instead "
        "of captions in words: then there is no score. You want to decide before the end of the run."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, to know where they end."""
        return frozenset({"captions"})

    @property
    def places(self) -> tuple[Place, ...]:
        """The first evaluation and the late ones."""
        return 0, *self.late

    def check(self, setup: Setup) -> None:
        """Refuse a network without cross-attention on its way down, and a tokenizer that does not pad at the end.

        Raises:
            UsageError: naming the network, or the tokenizer.
        """
        super().check(setup)
        cross_attention(setup.family.module, self.block)
        check_tokenizer(setup.pipe)

    def cost(self, setup: Setup) -> float:
        """One evaluation of the conditional branch for every place, half of one of both."""
        return len(self.places) * (0.5 if setup.guided else 1.0)

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,); NaN where the captions are not known in words."""
        if run.prompts is None:
            return torch.full((len(run),), torch.nan)
        first = _terms(run, denoiser, 0, self.block)
        ends = end_positions(run.pipe, run.prompts).to(first.device)
        summary = torch.arange(first.shape[1], device=first.device) >= ends[:, None]
        found = []
        for place in self.late:
            terms = _terms(run, denoiser, place, self.block)
            moved = ((terms - first) * summary).sum(dim=1).abs()
            found.append(terms.sum(dim=1) + moved)
        return torch.stack(found).mean(dim=0)


def _terms(run: Trajectory, denoiser: Denoiser, place: Place, block: int) -> Tensor:
    """−a·log a of every token of the caption, (B, tokens), whose sum is the entropy."""
    layers = cross_attention(getattr(denoiser, "module", None), block)
    share = attention(denoiser, run.step(place), layers[-1:])[0].mean(dim=1)
    return -share * share.clamp_min(1e-12).log()
