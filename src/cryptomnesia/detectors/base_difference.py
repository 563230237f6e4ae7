"""The difference between a fine-tune and the model that it was made from. A method of this library.

Both networks are asked at the same latents of the run, under the same caption, which picture they expect: x̂_0. If the
fine-tune has memorized the caption's picture, the two disagree from the first evaluation on, when the base still
expects anything that the caption allows. Late in the run the picture is there, and both see it. Under other captions
the first difference is smaller, and what is left of it late in the run is larger, because a fine-tune changes the model
everywhere. The score is 2 · mean log ‖x̂_0 − x̂_0,base‖ early in the run − the same mean late in the run: the logarithm
of the early distance, plus that of the factor by which it shrinks.

The evaluations and the 2 were chosen on four fine-tunes: `scenes-full`, `scenes-lora`, `drawings-full` and
`drawings-lora`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.base import wide
from cryptomnesia.localizers.baseline import check_checkpoint
from cryptomnesia.pipelines.contents.adapters import adapters
from cryptomnesia.pipelines.contents.weights import weights_of
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.fingerprint import networks, weights_digest, weights_digests
from cryptomnesia.pipelines.setup import Setup, describe
from cryptomnesia.tracing.trajectory import Place, Trajectory

LEAST = 1e-6
"""The smallest distance, relative to ‖x̂_0‖; below it rounding decides."""


@dataclass(frozen=True)
class BaseDifference(Measured):
    """Twice the mean log distance of x̂_0 from that of the base early in the run, minus that late in the run.

    Attributes:
        base: the pipeline of the model that was trained further; None takes the set-up's checkpoint, where it has one.
        early: the first evaluations that are compared.
        late: the last ones.
    """

    base: Any = field(default=None, repr=False)
    early: tuple[Place, ...] = (0, 0.1, 0.2)
    late: tuple[Place, ...] = (0.7, 0.8, 0.9)

    name = "base-difference"
    summary = "How far a fine-tune and its base are apart early in the run, and how much of that goes away."
    source = "this library"
    use_when = (
        "The model is a fine-tune or a LoRA, and you have the model that it was made from. Detectors that read the "
        "fine-tune alone fail on LoRAs of few pictures."
    )
    avoid_when = (
        "You have no base: use `settled-detail` as a detector, or match the images with the training pictures. A base "
        "that has memorized the picture already does not differ from the fine-tune."
    )

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluations at which the two networks are compared."""
        return *self.early, *self.late

    def on(self, setup: Setup) -> "BaseDifference":
        """The detector with the set-up's checkpoint as its base, if it has none."""
        return self if self.base is not None else BaseDifference(setup.checkpoint, self.early, self.late)

    def check(self, setup: Setup) -> None:
        """Refuse a set-up whose base is not known or does not fit.

        Raises:
            UsageError: if there is no base, or its latents, noise schedule or text encoders are not those of the model.
        """
        super().check(setup)
        base = self.on(setup).base
        if base is None:
            raise UsageError(
                f"{self.name} compares a fine-tune with its base; give the base as `BaseDifference(base)`, or with "
                "--checkpoint"
            )
        check_checkpoint(setup.pipe, base)
        first, second = _readers(setup.pipe), _readers(base)
        if unlike := sorted(name for name in {*first, *second} if first.get(name) != second.get(name)):
            raise UsageError(
                f"the {' and '.join(unlike)} of the base differs from the model's, and {self.name} gives the base the "
                "captions as the model's text encoder reads them; give the base that the fine-tune was made from"
            )

    def cost(self, setup: Setup) -> float:
        """One evaluation of the base's conditional branch for every place, half of one of both branches."""
        return len(self.places) * (0.5 if setup.guided else 1.0)

    def describe(self) -> str:
        """The settings, and the beginning of the digest of the base's weights."""
        return describe(self) + (f" against {weights_digest(self.base)[:12]}" if self.base is not None else "")

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,).

        Raises:
            UsageError: if the base is not known.
        """
        if self.base is None:
            raise UsageError(f"{self.name} has no base; give one as `BaseDifference(base)`")
        base = family_of(self.base).denoiser()
        return 2 * self._distance(run, base, self.early) - self._distance(run, base, self.late)

    @torch.no_grad()
    def _distance(self, run: Trajectory, base: Denoiser, places: tuple[Place, ...]) -> Tensor:
        """The mean over evaluations of log ‖x̂_0 − x̂_0,base‖, (B,)."""
        found = []
        for place in places:
            step = run.step(place)
            mine = wide(step.cond.x0).flatten(1)
            other = wide(base(step.cond.x, step.level, step.cond_inputs).x0).flatten(1)
            least = LEAST * torch.linalg.vector_norm(mine, dim=1)
            found.append(torch.linalg.vector_norm(mine - other, dim=1).maximum(least).log())
        return torch.stack(found).mean(dim=0)


def _readers(pipe: Any) -> dict[str, Any]:
    """The digest of the weights of every text encoder and its adapters, by its name in the pipeline."""
    return {
        name: (weights_digests(pipe)[name], adapters(name, network, weights_of(name, network)))
        for name, network in networks(pipe).items()
        if name.startswith("text_encoder")
    }
