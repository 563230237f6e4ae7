"""Move the embedding of the caption until it pulls no harder than usual (Wen et al., ICLR 2024, arXiv:2407.21720).

At the first evaluation the embeddings of the caption are moved down the gradient of ‖Δε‖, the distance between the
network's outputs with and without the caption. The embedding of the start token stays, so AdamW has no weight decay
here. The paper ends at ‖Δε‖ = 3 on Stable Diffusion 1; here the target is the median of the reference runs unless one
is given, because the distance depends on model and resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryptomnesia.mitigations.base import Correction, Flagged, Prepared, Preparing, Studio
from cryptomnesia.mitigations.captions import Path, embedded, of_captions
from cryptomnesia.mitigations.descent import check_descent, descended, recorded, usual_pull
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.trajectory import Step
from cryptomnesia.tracing.watching import check_conditioned

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class EmbeddingDescent(Preparing):
    """The descent; its defaults are the paper's but for the target.

    Attributes:
        target: ‖Δε‖ of one image at which it ends, > 0; the median of the reference runs by default.
        rate: of AdamW.
        most: steps at most.
    """

    target: float | None = None
    rate: float = 0.05
    most: int = 10

    name = "embedding-descent"  # type: ignore[override]
    summary = "The same seed again, with the embedding of the caption moved until it pulls no harder than usual."
    source = "arXiv:2407.21720"
    use_when = "You want a baseline. It leaves the text of the prompt alone, and takes gradients of the network."
    avoid_when = (
        "A caption always gives the same picture: it does so after a small movement, too. Memory for gradients is "
        "scarce."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the caption is compared."""
        return frozenset({"guidance"})

    def check(self, setup: "Setup") -> None:
        """Refuse pipelines whose captions cannot be changed during a run, or whose network has a cache.

        Raises:
            UsageError: naming the pipeline.
        """
        check_descent(self)
        check_conditioned(setup.pipe)
        setup.family.denoiser()

    def blinds(self, detector: "Detector") -> bool:
        """True of detectors that read the distance between the branches, which is made usual."""
        return bool(detector.reads & {"guidance", "information"})

    def cost(self, setup: "Setup") -> float:
        """One run, its first evaluation, and for every step one branch with its gradient."""
        return setup.sampling.steps + 1.0 + 1.5 * self.most

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Move the embeddings of every image."""
        step = studio.first([image.call for image in flagged], 1).step(0)
        denoiser = studio.setup.family.denoiser()
        target = usual_pull(studio.references) if self.target is None else self.target
        places = of_captions(step)
        moved: list[dict[Path, Tensor]] = []
        for row in range(len(flagged)):
            one = recorded(step.rows([row]))
            found = {path: values[row : row + 1] for path, values in places.items()}

            def objective(tensors: dict[Path, Tensor], one: Step = one) -> tuple[Tensor, Tensor]:
                assert one.uncond is not None
                cond = denoiser(one.cond.x, one.level, embedded(one.cond_inputs, tensors))
                distance = (cond.value - one.uncond.value).norm()
                return distance, distance

            moved.append(
                descended(
                    found,
                    objective,
                    partial(torch.optim.AdamW, lr=self.rate, weight_decay=0.0),
                    target=target,
                    most=self.most,
                    mask=_without_start,
                )
            )
        tensors = {path: torch.cat([one[path] for one in moved]) for path in moved[0]}
        calls = [image.call for image in flagged]
        return Prepared(calls, Embedded(tensors), ["with the caption's embedding moved"] * len(calls))


def _without_start(_: Path, gradient: Tensor) -> Tensor:
    """The gradient of embeddings (B, L, D) without the start token; that of one vector per caption as it is."""
    if gradient.dim() < 3:
        return gradient
    gradient = gradient.clone()
    gradient[:, 0] = 0
    return gradient


@dataclass
class Embedded(Correction):
    """Gives the network other embeddings of the captions.

    Attributes:
        tensors: place in the conditioning → embeddings of all images of the call, (B, …).
    """

    tensors: dict[Path, Tensor]

    def condition(self, index: int, inputs: Inputs) -> Inputs:
        """The conditioning with these embeddings."""
        return embedded(inputs, self.tensors)
