"""What is known of one call of a pipeline: norms of every evaluation, tensors of some, signals computed from those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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


NORMS: Mapping[str, str] = {
    "delta": "‖z_{t−1} − z_t‖ of the solver's latents",
    "z": "‖z_{t−1}‖, the latents after the step",
    "x0": "‖x̂_0‖ of the guided prediction",
    "guidance": "distance of the two branches' values as the network gives them, ‖ε_c − ε_u‖ for ε-prediction; NaN "
    "without an unconditional branch",
    "drift": "distance of the conditional branch's x̂_0 from that of the evaluation before; NaN at the first",
}
"""The norms that are always recorded: name → what is measured, as an ℓ2 norm over one image's latents."""


@dataclass(frozen=True)
class Trajectory:
    """What is known of one call of the pipeline, or of several calls with the same settings.

    Attributes:
        timesteps: the solver's timesteps; N of them were planned.
        norms: name → one number per image and evaluation that took place, (B, N) float32 on the CPU: those of `NORMS`
            and those that were asked for beside them.
        steps: the evaluations whose tensors were kept, by number.
        latents: the newest latents, (B, C, h, w).
        complete: whether the call ran to its last timestep.
        signals: name → one number or one map per image, (B, …) on the CPU, of the signals that were asked for and whose
            evaluations are over.
    """

    timesteps: tuple[float, ...]
    norms: Mapping[str, Tensor]
    steps: dict[int, Step]
    latents: Tensor
    complete: bool
    signals: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.norms["z"])

    @property
    def evaluations(self) -> int:
        """The number of evaluations that took place."""
        return self.norms["z"].shape[1]

    def step(self, place: Place = -1) -> Step:
        """The kept evaluation at `place`.

        Raises:
            UsageError: if its tensors were not kept.
        """
        number = evaluation(place, len(self.timesteps))
        if number not in self.steps:
            kept = ", ".join(map(str, self.steps)) or "none"
            raise UsageError(
                f"step {place} of {len(self.timesteps)} holds no tensors (kept: {kept}); watch with keep=({place},)"
            )
        return self.steps[number]

    def rows(self, rows: Sequence[int]) -> "Trajectory":
        """The trajectory of some of the images."""
        rows = list(rows)
        return replace(
            self,
            norms={name: values[rows] for name, values in self.norms.items()},
            steps={number: step.rows(rows) for number, step in self.steps.items()},
            latents=self.latents[rows],
            signals={name: values[rows] for name, values in self.signals.items()},
        )

    def bare(self) -> "Trajectory":
        """The trajectory without kept tensors and latents: what a calibration or a run directory stores."""
        return replace(self, steps={}, latents=torch.empty(len(self), 0))


def joined(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of several calls with the same settings as one of all their images, without kept tensors."""
    first = trajectories[0]
    return Trajectory(
        first.timesteps,
        {name: torch.cat([run.norms[name] for run in trajectories]) for name in first.norms},
        {},
        torch.cat([run.latents for run in trajectories]),
        complete=all(run.complete for run in trajectories),
        signals={name: torch.cat([run.signals[name] for run in trajectories]) for name in first.signals},
    )


class Norm(Protocol):
    """One number per image and evaluation that a detector needs beside those of `NORMS`."""

    @property
    def name(self) -> str:
        """Under which `Trajectory.norms` has it; no name of `NORMS`."""
        ...

    def __call__(self, step: Step, latents: Tensor, previous: Step | None) -> Tensor:
        """The number of every image, (B,), NaN where there is none.

        Args:
            step: the evaluation.
            latents: the solver's latents after its step, shaped like `step.sample`.
            previous: the evaluation before, None at the first.
        """
        ...


class Signal(Protocol):
    """One number or map per image, computed once in a run from kept tensors and, if need be, by asking the network."""

    @property
    def name(self) -> str:
        """Under which `Trajectory.signals` has it."""
        ...

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """The evaluations whose tensors it needs; it is computed after the last of them."""
        ...

    def describe(self) -> str:
        """Everything that changes its values, in words."""
        ...

    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The values of every image, (B, …), NaN where there are none.

        Args:
            trajectory: as far as the run went, with the tensors.
            denoiser: the network that made it.
        """
        ...
