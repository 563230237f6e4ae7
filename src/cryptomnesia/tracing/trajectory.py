"""What was seen of one call of a pipeline: norms of every evaluation, tensors of some, signals computed from those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Denoiser, Inputs, Prediction, input_rows

Place = int | float
"""An evaluation of a run: its number, counted from the end if negative, or as a float in [0, 1) a share of the run."""


def evaluation(place: Place, count: int) -> int:
    """The number of an evaluation in a run of `count`.

    Raises:
        UsageError: for one outside the run.
    """
    if isinstance(place, float):
        if not 0 <= place < 1:
            raise UsageError(
                f"got the evaluation {place:g}; give a whole number, or a share of the run from 0 to below 1"
            )
        # not 28 for .29 of 100
        return int(place * count + 1e-9)
    if not -count <= place < count:
        raise UsageError(f"got the evaluation {place} of a run of {count}; give one in 0 … {count - 1}")
    return place % count


@dataclass(frozen=True)
class Step:
    """One denoiser evaluation of B images.

    Attributes:
        index: number of the evaluation, from 0. PNDM makes N + 1 of them for N steps.
        planned: how many evaluations the run is to have.
        t: timestep.
        cond: prediction of the conditional branch.
        uncond: prediction of the unconditional branch, or None without guidance.
        guided: the prediction that the solver was given.
        sample: the solver's latents before the step, (B, C, h, w); of Flux, packed, (B, tokens, channels).
        cond_inputs: conditioning of the conditional branch.
        uncond_inputs: conditioning of the unconditional branch, or None.
        options: further arguments that the pipeline gives the solver's step, `eta` for instance.
    """

    index: int
    planned: int
    t: float
    cond: Prediction
    uncond: Prediction | None
    guided: Prediction
    sample: Tensor
    cond_inputs: Inputs
    uncond_inputs: Inputs | None
    options: Mapping[str, Any]

    def rows(self, rows: list[int]) -> "Step":
        """The step of some of the images."""
        cond = self.cond.rows(rows)
        # all predictions of a step are of the same x, and stay so
        return replace(
            self,
            cond=cond,
            uncond=None if self.uncond is None else replace(self.uncond.rows(rows), x=cond.x),
            guided=replace(self.guided.rows(rows), x=cond.x),
            sample=self.sample[rows],
            cond_inputs=input_rows(self.cond_inputs, rows),
            uncond_inputs=None if self.uncond_inputs is None else input_rows(self.uncond_inputs, rows),
        )


@dataclass(frozen=True)
class Norms:
    """ℓ2 norms of every evaluation, each (B, N) float32 on the CPU.

    Attributes:
        delta: ‖z_{t−1} − z_t‖ of the solver's latents.
        z: ‖z_{t−1}‖, after the step.
        x0: ‖x̂_0‖ of the guided prediction.
        guidance: distance of the two branches' values as the network gives them, ‖ε_c − ε_u‖ for
            ε-prediction; NaN without an unconditional branch.
        drift: distance of the conditional branch's x̂_0 from that of the evaluation before; NaN at the first.
    """

    delta: Tensor
    z: Tensor
    x0: Tensor
    guidance: Tensor
    drift: Tensor

    def rows(self, rows: list[int]) -> "Norms":
        """The norms of some of the images."""
        return Norms(*(getattr(self, norm.name)[rows] for norm in fields(Norms)))


@dataclass(frozen=True)
class Trajectory:
    """What was seen of one call of the pipeline.

    Attributes:
        timesteps: the solver's timesteps; N of them were planned.
        norms: of the evaluations that took place.
        steps: the evaluations whose tensors were kept, by number.
        latents: the newest latents, (B, C, h, w).
        complete: whether the call ran to its last timestep.
        signals: name → a number per image, (B,) on the CPU, of the signals that were asked for, once they are known.
    """

    timesteps: tuple[float, ...]
    norms: Norms
    steps: dict[int, Step]
    latents: Tensor
    complete: bool
    signals: Mapping[str, Tensor] = field(default_factory=dict)

    def step(self, place: Place = -1) -> Step:
        """The kept evaluation at `place`."""
        number = evaluation(place, len(self.timesteps))
        if number not in self.steps:
            kept = ", ".join(map(str, self.steps)) or "none"
            raise UsageError(
                f"step {place} of {len(self.timesteps)} holds no tensors (kept: {kept}); watch with keep=({place},)"
            )
        return self.steps[number]

    def rows(self, rows: list[int]) -> "Trajectory":
        """The trajectory of some of the images."""
        return replace(
            self,
            norms=self.norms.rows(rows),
            steps={number: step.rows(rows) for number, step in self.steps.items()},
            latents=self.latents[rows],
            signals={name: values[rows] for name, values in self.signals.items()},
        )


def joined(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of several calls with the same settings as one of all their images, without kept tensors."""
    return Trajectory(
        trajectories[0].timesteps,
        Norms(*(torch.cat([getattr(each.norms, norm.name) for each in trajectories]) for norm in fields(Norms))),
        {},
        torch.cat([each.latents for each in trajectories]),
        complete=all(each.complete for each in trajectories),
        signals={name: torch.cat([each.signals[name] for each in trajectories]) for name in trajectories[0].signals},
    )


class Signal(Protocol):
    """A number per image that asks the network more than its norms tell, taken while the run goes on."""

    @property
    def name(self) -> str:
        """Under which a trajectory has it."""
        ...

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """Those whose tensors it needs; after the last of them it is taken."""
        ...

    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The number of every image, (B,), NaN where there is none.

        Args:
            trajectory: as it stands, with the tensors.
            denoiser: the network that made it.
        """
        ...
