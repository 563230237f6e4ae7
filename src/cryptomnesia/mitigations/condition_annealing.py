"""Noise on the embedding of the caption that fades (CADS; Sadat et al., ICLR 2024, arXiv:2310.17347).

The paper makes pictures of one caption more varied in this way. With t the share of the run that is still to come, the
embedding y is replaced by √γ·y + s·√(1 − γ)·n, where n is white noise, and γ is 1 for t ≤ τ_1, 0 for t ≥ τ_2 and falls
linearly between. The result is scaled to the mean and the standard deviation of y. The paper takes noise of standard
deviation 1; here it has that of y, because embeddings of other text encoders have other sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Correction, Flagged, Prepared, Preparing, Studio
from cryptomnesia.mitigations.blindness import reads_early
from cryptomnesia.mitigations.captions import Path, draws_for, embedded, of_captions
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.watching import check_conditioned

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class ConditionAnnealing(Preparing):
    """How much noise, and when.

    Attributes:
        strength: s, in standard deviations of the embedding.
        clear: τ_1, in [0, 1]: behind it the embedding is as the caption has it.
        noisy: τ_2, in (τ_1, 1]: before it there is nothing but noise.
    """

    strength: float = 0.25
    clear: float = 0.6
    noisy: float = 0.9

    name = "condition-annealing"  # type: ignore[override]
    summary = "The same seed again, with noise on the embedding of the caption that fades."
    source = "arXiv:2310.17347"
    use_when = "You want a baseline. It leaves the prompt alone and costs nothing but the second run."
    avoid_when = (
        "A caption always gives the same picture: it comes back when the noise has faded. A guard refuses it with "
        "the default detector."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, by which embeddings of captions are known."""
        return frozenset({"guidance"})

    def check(self, setup: "Setup") -> None:
        """Refuse pipelines whose captions cannot be changed during a run, and shares that are not in order.

        Raises:
            UsageError: naming them.
        """
        if not (0 <= self.clear < self.noisy <= 1 and self.strength > 0):
            raise UsageError(
                f"got strength={self.strength}, clear={self.clear}, noisy={self.noisy} for {self.name}; give a "
                "strength above 0 and 0 ≤ clear < noisy ≤ 1"
            )
        check_conditioned(setup.pipe)

    def blinds(self, detector: "Detector") -> bool:
        """True of detectors that read early evaluations: these look ordinary, and the memory comes back later."""
        return reads_early(detector)

    def cost(self, setup: "Setup") -> float:
        """One more run, and its first evaluation."""
        return setup.sampling.steps + 1.0

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Draw the noise of every image."""
        calls = [image.call for image in flagged]
        tensors = of_captions(studio.first(calls, 1).step(0))
        draws = [draws_for(call, self.name) for call in calls]
        correction = Annealed(self, tensors, draws, len(studio.references.timesteps))
        return Prepared(calls, correction, ["with noise on the caption's embedding"] * len(calls))


@dataclass
class Annealed(Correction):
    """Adds fading noise to the embeddings of captions.

    Attributes:
        settings: how much, and when.
        tensors: place in the conditioning → embeddings of all images.
        draws: one generator per image.
        evaluations: of a run.
    """

    settings: ConditionAnnealing
    tensors: dict[Path, Tensor]
    draws: list[torch.Generator]
    evaluations: int

    def condition(self, index: int, inputs: Inputs) -> Inputs | None:
        """The conditioning with the noise of this evaluation."""
        left = 1 - index / self.evaluations
        share = (self.settings.noisy - left) / (self.settings.noisy - self.settings.clear)
        clear = min(1.0, max(0.0, share))
        if clear == 1.0:
            return None
        return embedded(inputs, {path: self._noisy(values, clear) for path, values in self.tensors.items()})

    def _noisy(self, values: Tensor, clear: float) -> Tensor:
        noise = torch.stack([torch.randn(values.shape[1:], generator=draws) for draws in self.draws]).to(values)
        dims = tuple(range(1, values.dim()))
        mean, spread = values.mean(dim=dims, keepdim=True), values.std(dim=dims, keepdim=True)
        mixed = clear**0.5 * values + self.settings.strength * (1 - clear) ** 0.5 * spread * noise
        wide = mixed.std(dim=dims, keepdim=True).clamp_min(1e-12)
        return (mixed - mixed.mean(dim=dims, keepdim=True)) / wide * spread + mean
