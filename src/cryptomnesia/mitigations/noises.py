"""Make an image from other noise, on which the caption pulls less."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations.base import Flagged, Prepared, Preparing, Studio
from cryptomnesia.mitigations.descent import check_descent, descended, recorded, usual_pull
from cryptomnesia.pipelines.families import pictures_of
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.trajectory import Step

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.pipelines.setup import Setup

_NEAR = 1e-2
"""Relative distance of latents within which they are the ones that were wanted."""

Difference = Callable[[Tensor], Tensor]
"""The network's input x (1, …) → its output with the caption less that without it, (1, …)."""


@dataclass(frozen=True)
class NoiseDescent(Preparing):
    """Gradient descent on the noise of an image.

    Attributes:
        target: distance ‖Δε‖ of one image at which it ends, > 0; the median of the reference runs by default.
        rate: of Adam.
        most: steps at most.
    """

    target: float | None = None
    rate: float = 0.05
    most: int = 10

    @abstractmethod
    def objective(self, difference: Difference, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is lowered at x (1, …), and ‖Δε‖, one number each."""
        ...

    @property
    def requires(self) -> frozenset[Requirement]:
        """An unconditional branch, with which the caption is compared."""
        return frozenset({"guidance"})

    def check(self, setup: "Setup") -> None:
        """Refuse pipelines that take no latents or begin from a picture, and networks with a cache.

        Raises:
            UsageError: naming the pipeline, or a setting with which nothing is moved.
        """
        check_descent(self)
        pipe = setup.pipe
        if pictures_of(pipe) or "latents" not in inspect.signature(type(pipe).__call__).parameters:
            raise UsageError(
                f"{self.name} chooses the noise of a run, and a {type(pipe).__name__} takes no latents or begins from "
                "a picture; use `partial-captions` or `rephrasing`"
            )
        setup.family.denoiser()

    def blinds(self, detector: "Detector") -> bool:
        """True of detectors that read the distance between the branches, which is made usual."""
        return bool(detector.reads & {"guidance", "information"})

    def cost(self, setup: "Setup") -> float:
        """One run, two first evaluations, and about three evaluations for every step."""
        return setup.sampling.steps + 2.0 + 3.0 * self.most

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Move the noise of every image.

        Raises:
            UsageError: if the pipeline makes other latents of those that it is given.
        """
        first = studio.first([image.call for image in flagged], 1).step(0)
        denoiser = studio.setup.family.denoiser()
        target = usual_pull(studio.references) if self.target is None else self.target
        moved = []
        for row in range(len(flagged)):
            step = recorded(first.rows([row]))

            def difference(x: Tensor, step: Step = step) -> Tensor:
                assert step.uncond_inputs is not None
                cond, uncond = (
                    denoiser(x, step.level, inputs).value for inputs in (step.cond_inputs, step.uncond_inputs)
                )
                return cond - uncond

            def objective(tensors: Mapping[str, Tensor], difference: Difference = difference) -> tuple[Tensor, Tensor]:
                return self.objective(difference, tensors["x"])

            optimizer = partial(torch.optim.Adam, lr=self.rate)
            found = descended({"x": step.cond.x}, objective, optimizer, target=target, most=self.most)["x"]
            # solvers of the exploding kind keep latents that are larger than the network's input, by one factor
            moved.append(found * (step.sample.norm() / step.cond.x.norm()))
        calls = _from(flagged, torch.cat(moved), studio)
        return Prepared(calls, notes=["from noise on which the caption pulls less"] * len(calls))


def _from(flagged: Sequence[Flagged], latents: Tensor, studio: Studio) -> list[Mapping[str, Any]]:
    """The calls of images that begin with these latents."""
    pipe = studio.setup.pipe
    # most pipelines multiply the latents that they are given by the first noise level of the solver
    for factor in (1 / float(getattr(pipe.scheduler, "init_noise_sigma", 1.0)), 1.0):
        calls: list[Mapping[str, Any]] = [
            {**image.call, "latents": latents[row : row + 1] * factor} for row, image in enumerate(flagged)
        ]
        got = studio.first(calls, 1).step(0).sample
        if (got - latents).norm() <= _NEAR * latents.norm():
            return calls
    raise UsageError(
        f"a {type(pipe).__name__} does not begin with the latents that it is given; use `partial-captions`"
    )
