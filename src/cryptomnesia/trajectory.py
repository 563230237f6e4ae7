"""Watch a pipeline's own call: every denoiser evaluation, every solver step, nothing re-implemented.

Two places are tapped while the `with` block lasts. A forward hook on the denoiser sees x_t, t, the
conditioning and both guidance branches. A wrapper around the scheduler's `step` sees the guided
prediction that the solver really consumes (after guidance rescaling, if any) and the latents before
and after, and can hand the solver another prediction. The hook alone would not do: the last latents
never reach the denoiser again, and what a solver makes of a prediction differs from solver to
solver. `set_timesteps`, which every pipeline calls once per generation, marks where one begins.

Observing copies nothing and computes only norms, so the image is bit-identical.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from threading import Lock, get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cryptomnesia.adapters import Adapter, Evaluation, adapter_for
from cryptomnesia.denoiser import Inputs, Prediction, input_rows, norms
from cryptomnesia.errors import UsageError
from cryptomnesia.solver import VARIANCE_EXPLODING, SolverStep

_LOCK = Lock()

Place = int | float
"""An evaluation of a run: its number, counted from the end if negative, or as a float in [0, 1) a share of the run."""

Keep = Collection[Place] | Literal["all"]
"""Evaluations whose tensors are kept."""


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
    """

    timesteps: tuple[float, ...]
    norms: Norms
    steps: dict[int, Step]
    latents: Tensor
    complete: bool

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
        steps = {number: step.rows(rows) for number, step in self.steps.items()}
        return Trajectory(self.timesteps, self.norms.rows(rows), steps, self.latents[rows], self.complete)


def joined(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of several calls with the same settings as one of all their images, without kept tensors."""
    return Trajectory(
        trajectories[0].timesteps,
        Norms(*(torch.cat([getattr(each.norms, norm.name) for each in trajectories]) for norm in fields(Norms))),
        {},
        torch.cat([each.latents for each in trajectories]),
        complete=all(each.complete for each in trajectories),
    )


Steer = Callable[[Step, SolverStep], Tensor | None]
"""Given an evaluation and the solver step that it is for, the value (B, C, h, w) to hand the solver instead
of `step.guided.value`, or None."""


@dataclass
class _Call:
    timesteps: tuple[float, ...]
    keep: frozenset[int]
    steps: dict[int, Step] = field(default_factory=dict)
    norms: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    latents: Tensor | None = None
    estimate: Tensor | None = None
    thread: int = field(default_factory=get_ident)

    @property
    def complete(self) -> bool:
        return len(self.norms) == len(self.timesteps)

    def trajectory(self) -> Trajectory:
        assert self.latents is not None
        columns = [torch.stack(column, dim=1).cpu() for column in zip(*self.norms, strict=True)]
        return Trajectory(self.timesteps, Norms(*columns), dict(self.steps), self.latents, self.complete)


class Watch:
    """The running record of a `watch` block."""

    def __init__(
        self,
        adapter: Adapter,
        keep: Keep = (),
        steer: Steer | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """Nothing is attached yet: use `watch`."""
        self.adapter = adapter
        self._keep: Keep = keep
        self._steer = steer
        self._after_step = after_step
        self._calls: list[_Call] = []
        self._pending: Evaluation | None = None

    @property
    def trajectories(self) -> list[Trajectory]:
        """One for every call of the pipeline that took at least one step, oldest first."""
        return [call.trajectory() for call in self._calls if call.norms]

    @property
    def trajectory(self) -> Trajectory:
        """That of the newest call."""
        if not self._calls or not self._calls[-1].norms:
            raise UsageError(
                "no generation was watched; call the pipeline inside the `with` block, "
                "and set its scheduler before the block"
            )
        return self._calls[-1].trajectory()

    def _begin(self, timesteps: tuple[float, ...]) -> None:
        count = len(timesteps)
        wanted = range(count) if self._keep == "all" else self._keep
        kept = frozenset(evaluation(place, count) for place in wanted)
        self._pending = None
        self._calls.append(_Call(timesteps, kept))

    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # the model may also be evaluated inside the block but outside a generation, by a localizer say
        # and by another pipeline that shares it, in another thread
        call = self._calls[-1] if self._calls else None
        if call is not None and not call.complete and call.thread == get_ident():
            value = output if isinstance(output, Tensor) else output[0]
            self._pending = self.adapter.read(args, kwargs, value, self._pending)

    def _alpha_after(self, scheduler: Any, call: _Call) -> float:
        """The factor of x_0 in the latents that the step in progress leads to."""
        if type(scheduler).__name__ in VARIANCE_EXPLODING:
            return 1.0
        if type(scheduler).__name__ == "DDIMScheduler":
            # not always the next timestep of the run: with spacing "linspace" DDIM aims a little beside it
            before = (
                int(call.timesteps[len(call.norms)])
                - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
            )
            bar = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
            return float(bar) ** 0.5
        following = len(call.norms) + 1
        if following < len(call.timesteps):
            return self.adapter.schedule(call.timesteps[following])[0].item()
        return float(getattr(scheduler, "final_alpha_cumprod", 1.0)) ** 0.5

    def _on_step(
        self, scheduler: Any, step: Callable[..., Any], value: Tensor, t: Any, sample: Tensor, *rest: Any, **named: Any
    ) -> Any:
        if self._pending is None or not self._calls:
            return step(value, t, sample, *rest, **named)
        call, seen_now, self._pending = self._calls[-1], self._pending, None
        x, cond, uncond = seen_now.x, seen_now.cond, seen_now.uncond
        alpha, sigma = (number.item() for number in self.adapter.schedule(t))

        def prediction(of: Tensor) -> Prediction:
            return Prediction(x, of, alpha, sigma, self.adapter.kind)

        seen = Step(
            index=len(call.norms),
            planned=len(call.timesteps),
            t=float(t),
            cond=prediction(cond.value),
            uncond=None if uncond is None else prediction(uncond.value),
            guided=prediction(value),
            sample=sample,
            cond_inputs=cond.inputs,
            uncond_inputs=None if uncond is None else uncond.inputs,
            options=named,
        )
        if self._steer is not None:
            steered = self._steer(
                seen, SolverStep(scheduler, (t, sample, *rest), named, self._alpha_after(scheduler, call))
            )
            value = value if steered is None else steered
        result = step(value, t, sample, *rest, **named)
        latents: Tensor = result[0]
        call.latents = latents
        if seen.index in call.keep:
            call.steps[seen.index] = seen
        if seen.uncond is None:
            apart = torch.full_like(norms(x), torch.nan)
        else:
            apart = norms(seen.cond.value - seen.uncond.value)
        estimate = seen.cond.x0.detach()
        drift = torch.full_like(apart, torch.nan) if call.estimate is None else norms(estimate - call.estimate)
        call.estimate = estimate
        call.norms.append((norms(latents - sample), norms(latents), norms(prediction(value).x0), apart, drift))
        if self._after_step is not None:
            self._after_step(len(call.norms))
        return result


@contextmanager
def watch(
    pipe: Any,
    *,
    keep: Keep = (),
    steer: Steer | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Iterator[Watch]:
    """Record every generation that `pipe` makes inside the block.

    Args:
        pipe: a diffusers pipeline of a known family.
        keep: evaluations whose tensors are kept; the norms of all are recorded always.
        steer: called at every evaluation, may replace the prediction that the solver is given.
        after_step: called after every solver step with the number of evaluations done.

    Raises:
        UsageError: for a pipeline of an unknown family, or a step outside the run.

    Example:
        with watch(pipe, keep=(-1,)) as seen:
            image = pipe("a red circle on a blue ground").images[0]
        seen.trajectory.norms.delta
    """
    seen = Watch(adapter_for(pipe), keep, steer, after_step)
    scheduler = pipe.scheduler
    step, set_timesteps = scheduler.step, scheduler.set_timesteps
    before = {name: vars(scheduler).get(name) for name in ("step", "set_timesteps")}

    @wraps(step)
    def watched_step(value: Tensor, t: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
        return seen._on_step(scheduler, step, value, t, sample, *rest, **named)

    watched_step.unwatched = step  # type: ignore[attr-defined]

    # pipelines inspect the signatures of both methods, which `wraps` keeps
    @wraps(set_timesteps)
    def watched_set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = set_timesteps(*args, **kwargs)
        seen._begin(tuple(float(t) for t in scheduler.timesteps))
        return result

    unhook = _after_forward(seen.adapter.module, seen._on_forward)
    scheduler.step, scheduler.set_timesteps = watched_step, watched_set_timesteps
    try:
        yield seen
    finally:
        unhook()
        for name, value in before.items():
            if value is None:
                delattr(scheduler, name)
            else:
                setattr(scheduler, name, value)


def _after_forward(module: nn.Module, hook: Callable[..., None]) -> Callable[[], None]:
    """Have `hook(module, args, kwargs, output)` called after every call of the module; returns how to undo that."""
    compiled = vars(module).get("_compiled_call_impl")
    if compiled is None:
        return module.register_forward_hook(hook, with_kwargs=True).remove
    # a module compiled in place would compile its hooks too, and itself anew for each of them
    with _LOCK:
        hooks: list[Callable[..., None]] | None = getattr(compiled, "hooks", None)
        if hooks is None:
            inner, hooks = compiled, []

            @wraps(inner)
            def call(*args: Any, **kwargs: Any) -> Any:
                output = inner(*args, **kwargs)
                for each in tuple(call.hooks):  # type: ignore[attr-defined]
                    each(module, args, kwargs, output)
                return output

            call.hooks = hooks  # type: ignore[attr-defined]
            call.inner = inner  # type: ignore[attr-defined]
            vars(module)["_compiled_call_impl"] = call
        hooks.append(hook)

    def remove() -> None:
        with _LOCK:
            hooks.remove(hook)
            if not hooks:
                vars(module)["_compiled_call_impl"] = vars(module)["_compiled_call_impl"].inner

    return remove
