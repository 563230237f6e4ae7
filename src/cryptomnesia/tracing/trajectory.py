"""The record of a pipeline's call: norms of every evaluation, tensors of some of them, signals computed from these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Denoiser, Prediction
from cryptomnesia.pipelines.inputs import Inputs, input_rows
from cryptomnesia.pipelines.schedule import Level

Place = int | float
"""An evaluation of a run: its number as an int, counted from the end if negative, or a share of the run as a float in
[0, 1)."""


def evaluation(place: Place, count: int) -> int:
    """The number of an evaluation in a run of `count` evaluations.

    Raises:
        UsageError: for an evaluation outside the run.
    """
    if isinstance(place, float):
        if not 0 <= place < 1:
            raise UsageError(
                f"got the evaluation {place:g}; give a whole number, or a share of the run from 0 to below 1"
            )
        # without the small number, 0.29 of 100 would be 28
        return int(place * count + 1e-9)
    if not -count <= place < count:
        raise UsageError(f"got the evaluation {place} of a run of {count}; give one in 0 … {count - 1}")
    return place % count


@dataclass(frozen=True)
class Step:
    """One denoiser evaluation of B images.

    Attributes:
        index: number of the evaluation, from 0. PNDM makes N + 1 of them for N steps.
        planned: number of evaluations that the run will have.
        t: timestep.
        cond: prediction of the conditional branch.
        uncond: prediction of the unconditional branch, or None without guidance.
        guided: the prediction that the pipeline gives the solver.
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

    @property
    def level(self) -> Level:
        """The noise level, at which a `Denoiser` makes the same predictions again."""
        return Level(self.t, self.cond.alpha, self.cond.sigma)

    def rows(self, rows: list[int]) -> "Step":
        """The step of the images with the numbers `rows`."""
        cond = self.cond.rows(rows)
        # all predictions of a step share one x; their rows share it too
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
    "guidance": "distance between the network's outputs of the two branches, ‖ε_c − ε_u‖ for ε-prediction; NaN without "
    "an unconditional branch",
    "drift": "distance between the conditional branch's x̂_0 and that of the evaluation before; NaN at the first one",
    "information": "what the caption tells about the image from the evaluation before to this one, in nats, while "
    "there is more noise than signal: see `cryptomnesia.tracing.information`; NaN without an unconditional branch",
    "detail": "mean of log(1 + |∇x̂_0|/0.01) over the neighbours of the guided prediction",
}
"""The norms that are always recorded: name → what is measured; the first five are ℓ2 norms over the latents of an
image."""


@dataclass(frozen=True)
class Trajectory:
    """The record of one call of the pipeline, or of several calls with the same settings.

    Attributes:
        timesteps: the solver's timesteps, one per planned evaluation.
        norms: name → one number per image and evaluation that took place, (B, N) float32 on the CPU: the norms of
            `NORMS` and those that were asked for.
        steps: number of an evaluation → the evaluation with its tensors, for those that were kept.
        latents: the newest latents, (B, C, h, w).
        complete: whether the call ran to its last timestep.
        signals: name → one number or one map per image, (B, …) on the CPU, for the signals that were asked for and
            whose evaluations are over.
        prompts: the caption of every image, None where they were not given in words or were not kept.
        pipe: the pipeline that made the call, None for several calls and for what was stored.
    """

    timesteps: tuple[float, ...]
    norms: Mapping[str, Tensor]
    steps: dict[int, Step]
    latents: Tensor
    complete: bool
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: tuple[str, ...] | None = None
    pipe: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the pipeline, so that a stored or copied trajectory does not hold the model."""
        return {**vars(self), "pipe": None}

    def __len__(self) -> int:
        """The number of images."""
        return len(self.norms["z"])

    @property
    def evaluations(self) -> int:
        """The number of evaluations that took place."""
        return self.norms["z"].shape[1]

    def step(self, place: Place = -1) -> Step:
        """The evaluation at `place`, whose tensors were kept.

        Raises:
            UsageError: if they were not kept.
        """
        number = evaluation(place, len(self.timesteps))
        if number not in self.steps:
            kept = ", ".join(map(str, self.steps)) or "none"
            raise UsageError(
                f"step {place} of {len(self.timesteps)} holds no tensors (kept: {kept}); watch with keep=({place},)"
            )
        return self.steps[number]

    def rows(self, rows: Sequence[int]) -> "Trajectory":
        """The trajectory of the images with the numbers `rows`."""
        rows = list(rows)
        return replace(
            self,
            norms={name: values[rows] for name, values in self.norms.items()},
            steps={number: step.rows(rows) for number, step in self.steps.items()},
            latents=self.latents[rows],
            signals={name: values[rows] for name, values in self.signals.items()},
            prompts=None if self.prompts is None else tuple(self.prompts[row] for row in rows),
        )

    def bare(self) -> "Trajectory":
        """The trajectory without kept tensors, latents, captions and pipeline: what a calibration or a run stores."""
        return replace(self, steps={}, latents=torch.empty(len(self), 0), prompts=None, pipe=None)


def joined(trajectories: Sequence[Trajectory]) -> Trajectory:
    """One trajectory of the images of several calls with the same settings, without kept tensors and captions."""
    first = trajectories[0]
    return Trajectory(
        first.timesteps,
        {name: torch.cat([run.norms[name] for run in trajectories]) for name in first.norms},
        {},
        torch.cat([run.latents for run in trajectories]),
        complete=all(run.complete for run in trajectories),
        signals={name: joined_maps([run.signals[name] for run in trajectories]) for name in first.signals},
    )


def joined_maps(parts: Sequence[Tensor]) -> Tensor:
    """Values of several calls (B_i, …) as one tensor.

    If no map of a call could be computed, the size of the maps is not known there, and the part has NaN of some size,
    (B_i, 1, 1) for instance. It gets the size of the maps of the other calls.
    """
    known = [part for part in parts if not part.isnan().all()]
    size = known[0].shape[1:] if known else max(parts, key=lambda part: part[0].numel()).shape[1:]
    return torch.cat([part.new_full((len(part), *size), torch.nan) if part.isnan().all() else part for part in parts])


class Norm(Protocol):
    """One number per image and evaluation that a detector needs and that `NORMS` does not have.

    A norm whose values depend on settings is a frozen dataclass, or has a method `describe` that names them in words: a
    calibration compares these words with those of the norm that was recorded.
    """

    @property
    def name(self) -> str:
        """The name under which `Trajectory.norms` has the values; it must not be in `NORMS`."""
        ...

    def __call__(self, step: Step, latents: Tensor, previous: Step | None) -> Tensor:
        """The number of every image, (B,), NaN where there is none.

        Args:
            step: the evaluation.
            latents: the solver's latents after the step, shaped like `step.sample`.
            previous: the evaluation before, None at the first evaluation.
        """
        ...


class Signal(Protocol):
    """One number or one map per image, computed once during a run from kept tensors and from the network."""

    @property
    def name(self) -> str:
        """The name under which `Trajectory.signals` has the values."""
        ...

    @property
    def evaluations(self) -> tuple[Place, ...]:
        """The evaluations whose tensors the signal needs; it is computed after the last of them."""
        ...

    def describe(self) -> str:
        """Everything that changes its values, in words."""
        ...

    def __call__(self, trajectory: Trajectory, denoiser: Denoiser) -> Tensor:
        """The values of every image, (B, …), NaN where there are none.

        Args:
            trajectory: the run so far, with the tensors of `evaluations`.
            denoiser: the network of the run.
        """
        ...
