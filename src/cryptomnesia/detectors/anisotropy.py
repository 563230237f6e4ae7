"""Anisotropy (Asthana & Belagiannis, ICLR 2026, arXiv:2601.20642): length and direction of the guidance.

The score is γ_1·‖ε_c − ε_u‖ at the first evaluation plus γ_2·cos(ε_u, ε_c − ε_u). The cosine is taken over channels and
averaged over places. It is computed on the noise that the run began with, in which there is no picture, but with the
noise level of a late evaluation. The authors take the third evaluation from the end of 50, and (γ_1, γ_2) = (1, 2) for
Stable Diffusion 1.

For networks that predict v or a flow, the first term uses the difference of the predicted values, as
`guidance-first` does. The cosine is that of noise estimates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.localizers.base import wide
from cryptomnesia.pipelines.denoiser import Denoiser, norms
from cryptomnesia.pipelines.setup import Requirement, Setup
from cryptomnesia.tracing.trajectory import Place, Trajectory


@dataclass(frozen=True)
class Anisotropy(Measured):
    """γ_1·‖Δ‖ + γ_2·cos(ε_u, Δ); the first term is in latent units, the second has none.

    Attributes:
        norm: γ_1, the weight of the norm.
        cosine: γ_2, the weight of the cosine.
        level: the evaluation whose noise level the cosine is computed at.
    """

    norm: float = 1.0
    cosine: float = 2.0
    level: Place = -3

    name = "anisotropy"
    summary = "How long the guidance is at the first step, and how far it points along the unconditional prediction."
    source = "arXiv:2601.20642"
    use_when = "You compare with it on Stable Diffusion, for which its weights were chosen."
    avoid_when = (
        "The runs have no unconditional branch, or your model is not Stable Diffusion 1: latents of another size "
        "change the norm, and with it the weights that fit."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the conditional one is compared."""
        return frozenset({"guidance"})

    @property
    def places(self) -> tuple[Place, ...]:
        """The first evaluation, and that of the noise level."""
        return (0, self.level)

    def cost(self, setup: Setup) -> float:
        """One evaluation of both branches."""
        return 1.0

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,)."""
        first, level = run.step(0), run.step(self.level).level
        assert first.uncond is not None
        assert first.uncond_inputs is not None
        length = norms(wide(first.cond.value) - wide(first.uncond.value))
        cond = wide(denoiser(first.cond.x, level, first.cond_inputs).epsilon)
        uncond = wide(denoiser(first.cond.x, level, first.uncond_inputs).epsilon)
        # channels come second in a picture, and last in packed latents
        channels = 1 if cond.dim() == 4 else -1
        cosine = torch.cosine_similarity(uncond, cond - uncond, dim=channels).flatten(1).mean(dim=1)
        return self.norm * length.to(cosine) + self.cosine * cosine
