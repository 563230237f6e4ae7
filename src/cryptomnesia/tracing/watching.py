"""Watch a pipeline's own call: every denoiser evaluation, every solver step, nothing re-implemented.

Two places are tapped while the `with` block lasts. A forward hook on the denoiser sees x_t, t, the
conditioning and both guidance branches. A wrapper around the scheduler's `step` sees the guided
prediction that the solver really consumes (after guidance rescaling, if any) and the latents before
and after, and can hand the solver another prediction. The hook alone would not do: the last latents
never reach the denoiser again, and what a solver makes of a prediction differs from solver to
solver. `set_timesteps`, which every pipeline calls once per generation, marks where one begins.

Observing copies nothing and computes only norms, so the image is bit-identical. Signals, where they are asked for,
evaluate the network between two steps, on tensors of their own; the image is the same then, too.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock, get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Prediction, norms
from cryptomnesia.pipelines.families import Adapter, Evaluation, adapter_for
from cryptomnesia.tracing.steering import VARIANCE_EXPLODING, SolverStep
from cryptomnesia.tracing.trajectory import Norms, Place, Signal, Step, Trajectory, evaluation

_LOCK = Lock()

_ASKING: ContextVar[bool] = ContextVar("asking", default=False)
"""Whether the network is being evaluated for a signal, which is nothing that any watch should see."""

Keep = Collection[Place] | Literal["all"]
"""Evaluations whose tensors are kept."""


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
    signals: dict[str, Tensor] = field(default_factory=dict)
    thread: int = field(default_factory=get_ident)

    @property
    def complete(self) -> bool:
        return len(self.norms) == len(self.timesteps)

    def trajectory(self) -> Trajectory:
        assert self.latents is not None
        columns = [torch.stack(column, dim=1).cpu() for column in zip(*self.norms, strict=True)]
        steps, signals = dict(self.steps), dict(self.signals)
        return Trajectory(self.timesteps, Norms(*columns), steps, self.latents, self.complete, signals)


class Watch:
    """The running record of a `watch` block."""

    def __init__(
        self,
        adapter: Adapter,
        keep: Keep = (),
        steer: Steer | None = None,
        after_step: Callable[[int], None] | None = None,
        signals: Sequence[Signal] = (),
    ) -> None:
        """Nothing is attached yet: use `watch`."""
        self.adapter = adapter
        self._keep: Keep = keep
        self._steer = steer
        self._after_step = after_step
        self._signals = signals
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
        needed = [place for each in self._signals for place in each.evaluations]
        kept = frozenset(evaluation(place, count) for place in (*wanted, *needed))
        self._pending = None
        self._calls.append(_Call(timesteps, kept))

    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # the model may also be evaluated inside the block but outside a generation, by a localizer say
        # and by another pipeline that shares it, in another thread
        call = self._calls[-1] if self._calls else None
        if call is not None and not (call.complete or _ASKING.get()) and call.thread == get_ident():
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
        self._take_signals(call, seen.index)
        if self._after_step is not None:
            self._after_step(len(call.norms))
        return result

    def _take_signals(self, call: _Call, index: int) -> None:
        """Take the signals that are known after evaluation `index`."""
        asking = _ASKING.set(True)
        try:
            for each in self._signals:
                if index == max(evaluation(place, len(call.timesteps)) for place in each.evaluations):
                    call.signals[each.name] = each(call.trajectory(), self.adapter.denoiser()).cpu()
        finally:
            _ASKING.reset(asking)


@contextmanager
def watch(
    pipe: Any,
    *,
    keep: Keep = (),
    steer: Steer | None = None,
    after_step: Callable[[int], None] | None = None,
    signals: Sequence[Signal] = (),
) -> Iterator[Watch]:
    """Record every generation that `pipe` makes inside the block.

    Args:
        pipe: a diffusers pipeline of a known family.
        keep: evaluations whose tensors are kept; the norms of all are recorded always.
        steer: called at every evaluation, may replace the prediction that the solver is given.
        after_step: called after every solver step with the number of evaluations done.
        signals: taken as soon as the evaluations that they need are over; these are kept, too.

    Raises:
        UsageError: for a pipeline of an unknown family, or a step outside the run.

    Example:
        with watch(pipe, keep=(-1,)) as seen:
            image = pipe("a red circle on a blue ground").images[0]
        seen.trajectory.norms.delta
    """
    seen = Watch(adapter_for(pipe), keep, steer, after_step, signals)
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
