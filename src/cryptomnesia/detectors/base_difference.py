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

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cryptomnesia.detectors.measured import Measured
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.baseline import check_checkpoint
from cryptomnesia.localizers.collapse import wide_x0
from cryptomnesia.pipelines.contents.adapters import adapters, without_adapters
from cryptomnesia.pipelines.contents.walk import Walk
from cryptomnesia.pipelines.contents.weights import digest, weights_of
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.fingerprint import networks
from cryptomnesia.pipelines.setup import Setup, describe
from cryptomnesia.tracing.trajectory import Place, Trajectory, evaluation

LEAST = 1e-6
"""The smallest distance, relative to ‖x̂_0‖; below it rounding decides, also in single precision."""


@dataclass(frozen=True)
class BaseDifference(Measured):
    """Twice the mean log distance of x̂_0 from that of the base early in the run, minus that late in the run.

    Attributes:
        base: the pipeline of the model that was trained further; None takes the set-up's checkpoint, where it has one.
        early: the first evaluations that are compared.
        late: the last ones; without any, the score is twice the early mean, and known early.
    """

    base: Any = field(default=None, repr=False)
    early: tuple[Place, ...] = (0, 0.1, 0.2)
    late: tuple[Place, ...] = (0.7, 0.8, 0.9)

    name = "base-difference"
    summary = "How far a fine-tune and its base are apart early in the run, and how much of that goes away."
    source = "this library"
    use_when = (
        "The model is a fine-tune or a LoRA, and you have the model that it was made from. On fine-tunes on few "
        "pictures the default fails, and no other detector that costs nothing holds."
    )
    avoid_when = (
        "You have no base: use `settled-detail` as a detector, or match the images with the training pictures. A base "
        "that has memorized the picture already does not differ from the fine-tune. You want to decide early: the "
        "score is known after nine tenths of the run, or with `late=()` after two tenths."
    )

    @property
    def places(self) -> tuple[Place, ...]:
        """The evaluations at which the two networks are compared."""
        return *self.early, *self.late

    def bound_to(self, setup: Setup) -> "BaseDifference":
        """The detector with the set-up's checkpoint as its base, if it has none."""
        return self if self.base is not None else replace(self, base=setup.checkpoint)

    def check(self, setup: Setup) -> None:
        """Refuse a set-up whose base is not known or does not fit.

        Raises:
            UsageError: if there is no base, it is the model itself, it is on another device, or its latents, noise
                schedule or text encoders are not those of the model; or if a run is so short that early and late are
                the same evaluation.
        """
        super().check(setup)
        base = self.bound_to(setup).base
        if base is None or isinstance(base, str | Path):
            raise UsageError(
                f"{self.name} compares a fine-tune with its base; give the loaded base as `BaseDifference(base)`, or "
                "to a command as --checkpoint"
            )
        count = setup.evaluations
        if count is not None and self._at(self.early, count) & self._at(self.late, count):
            raise UsageError(f"a run of {count} evaluations is too short for {self.name}; give it more steps")
        check_checkpoint(setup.pipe, base, decoded=False)
        family_of(base).denoiser()
        if _device(setup.pipe) != _device(base):
            raise UsageError(
                f"the base is on {_device(base)}, the model on {_device(setup.pipe)}; load both on the same device"
            )
        if _denoiser(setup.pipe) == _denoiser(base):
            raise UsageError(
                "the base is the same model as the fine-tune; load the base on its own, and the LoRA into the other "
                "pipeline only"
            )
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
        """The settings, and the beginning of the digest of the base's denoiser."""
        return f"{describe(self)} against {'no base' if self.base is None else _denoiser(self.base)[0][:12]}"

    def measure(self, run: Trajectory, denoiser: Denoiser) -> Tensor:
        """The score of every image, (B,).

        Raises:
            UsageError: if the base is not known.
        """
        if self.base is None:
            raise UsageError(f"{self.name} has no base; give one as `BaseDifference(base)`")
        base = family_of(self.base).denoiser()
        early = 2 * _distance(run, base, self.early)
        return early - _distance(run, base, self.late) if self.late else early

    def _at(self, places: tuple[Place, ...], count: int) -> set[int]:
        """The numbers of evaluations in a run of `count`."""
        return {evaluation(place, count) for place in places}


@torch.no_grad()
def _distance(run: Trajectory, base: Denoiser, places: tuple[Place, ...]) -> Tensor:
    """The mean over evaluations of log ‖x̂_0 − x̂_0,base‖, (B,)."""
    found = []
    for place in places:
        step = run.step(place)
        mine, other = (wide_x0(one).flatten(1) for one in (step.cond, base(step.cond.x, step.level, step.cond_inputs)))
        least = LEAST * torch.linalg.vector_norm(mine, dim=1)
        found.append(torch.linalg.vector_norm(mine - other, dim=1).maximum(least).log())
    return torch.stack(found).mean(dim=0)


def _device(pipe: Any) -> str:
    """The kind of device that computes; of an offloaded network that of its hook."""
    module: Any = family_of(pipe).module
    return torch.device(getattr(getattr(module, "_hf_hook", None), "execution_device", None) or module.device).type


def _denoiser(pipe: Any) -> tuple[str, str]:
    """The digest of the denoiser's weights, and its adapters in words."""
    chosen, found = family_of(pipe).module, networks(pipe)
    # what is compiled or distributed is a component under its wrapper
    name = next(name for name, network in found.items() if chosen is network or chosen is pipe.components[name])
    return _contents(name, found[name])


def _readers(pipe: Any) -> dict[str, tuple[str, str]]:
    """The digest of every text encoder's weights and its adapters in words, by its name in the pipeline."""
    return {
        name: _contents(name, network) for name, network in networks(pipe).items() if name.startswith("text_encoder")
    }


def _contents(name: str, network: nn.Module) -> tuple[str, str]:
    """The digest of a network's weights, and its adapters in words."""
    walk = Walk.through(network)
    weights = weights_of(name, walk)
    return digest(name, network, without_adapters(walk, weights)), str(adapters(name, walk, weights))
