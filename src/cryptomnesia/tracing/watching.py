"""Watch a pipeline's own call: every denoiser evaluation and every solver step. No pipeline is implemented again.

While the `with` block lasts, two places are observed. A forward hook on the denoiser sees x_t, t, the conditioning and
both guidance branches. A wrapper around the scheduler's `step` sees the guided prediction that the solver consumes
(after guidance rescaling, if there is any) and the latents before and after the step; it can also give the solver
another prediction. The hook alone would not be enough: the last latents never reach the denoiser again, and what a
solver makes of a prediction differs from solver to solver. `set_timesteps`, which every pipeline calls once per
generation, marks the beginning of a run.

Observing copies nothing and computes only norms, so the image is bit-identical. Signals, where they are asked for,
evaluate the network between two steps, on tensors of their own; the image stays identical then, too.
"""

import inspect
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
from cryptomnesia.pipelines.families import Evaluation, Family, family_of
from cryptomnesia.tracing.steering import VARIANCE_EXPLODING, SolverStep
from cryptomnesia.tracing.trajectory import NORMS, Norm, Place, Signal, Step, Trajectory, evaluation

_LOCK = Lock()

_ASKING: ContextVar[bool] = ContextVar("asking", default=False)
"""Whether the network is being evaluated for a signal, which no watch should see."""

Keep = Collection[Place] | Literal["all"]
"""Evaluations whose tensors are kept."""

Steer = Callable[[Step, SolverStep], Tensor | None]
"""Takes an evaluation and the solver step that consumes it; returns the value (B, C, h, w) to give the solver instead of
`step.guided.value`, or None."""

SolverCall = Callable[..., Any]
"""A scheduler's `step`, called with prediction, timestep, sample and whatever the pipeline gives beside them."""


@dataclass
class _Call:
    timesteps: tuple[float, ...]
    keep: frozenset[int]
    steps: dict[int, Step] = field(default_factory=dict)
    norms: list[dict[str, Tensor]] = field(default_factory=list)
    latents: Tensor | None = None
    estimate: Tensor | None = None
    previous: Step | None = None
    signals: dict[str, Tensor] = field(default_factory=dict)
    thread: int = field(default_factory=get_ident)

    @property
    def complete(self) -> bool:
        return len(self.norms) == len(self.timesteps)

    def trajectory(self) -> Trajectory:
        assert self.latents is not None
        columns = {name: torch.stack([row[name] for row in self.norms], dim=1).cpu() for name in self.norms[0]}
        return Trajectory(self.timesteps, columns, dict(self.steps), self.latents, self.complete, dict(self.signals))


class Watch:
    """The record of a `watch` block."""

    def __init__(
        self,
        family: Family,
        keep: Keep = (),
        steer: Steer | None = None,
        after_step: Callable[[int], None] | None = None,
        norms: Sequence[Norm] = (),
        signals: Sequence[Signal] = (),
    ) -> None:
        """Nothing is attached yet: use `watch`."""
        self.family = family
        self._keep: Keep = keep
        self._steer = steer
        self._after_step = after_step
        self._norms = norms
        self._signals = signals
        self._calls: list[_Call] = []
        self._pending: Evaluation | None = None
        if taken := sorted(NORMS.keys() & {norm.name for norm in norms}):
            raise UsageError(f"got a norm called {taken[0]!r}, which is always recorded; give it another name")

    @property
    def trajectories(self) -> list[Trajectory]:
        """One for every call of the pipeline that took at least one step, oldest first."""
        return [call.trajectory() for call in self._calls if call.norms]

    @property
    def trajectory(self) -> Trajectory:
        """That of the newest call.

        Raises:
            UsageError: if no call was watched.
        """
        if not self._calls or not self._calls[-1].norms:
            raise UsageError(
                "no generation was watched; call the pipeline inside the `with` block, "
                "and set its scheduler before the block"
            )
        return self._calls[-1].trajectory()

    def _begin(self, timesteps: tuple[float, ...]) -> None:
        count = len(timesteps)
        wanted = range(count) if self._keep == "all" else self._keep
        needed = [place for signal in self._signals for place in signal.evaluations]
        kept = frozenset(evaluation(place, count) for place in (*wanted, *needed))
        self._pending = None
        self._calls.append(_Call(timesteps, kept))

    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # the network may also be evaluated inside the block but outside a generation, for instance by a localizer,
        # or by another pipeline that shares it, in another thread
        call = self._calls[-1] if self._calls else None
        if call is not None and not (call.complete or _ASKING.get()) and call.thread == get_ident():
            value = output if isinstance(output, Tensor) else output[0]
            self._pending = self.family.read(args, kwargs, value, self._pending)

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
            return self.family.schedule(call.timesteps[following])[0].item()
        return float(getattr(scheduler, "final_alpha_cumprod", 1.0)) ** 0.5

    def _on_step(
        self,
        scheduler: Any,
        take: SolverCall,
        value: Tensor,
        t: Any,
        sample: Tensor,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """Record a step that `take` takes, with the prediction `value` or the one that steering puts in its place."""
        if self._pending is None or not self._calls:
            return take(value, t, sample, *rest, **named)
        call, pending, self._pending = self._calls[-1], self._pending, None
        x, cond, uncond = pending.x, pending.cond, pending.uncond
        alpha, sigma = (number.item() for number in self.family.schedule(t))

        def prediction(network_value: Tensor) -> Prediction:
            return Prediction(x, network_value, alpha, sigma, self.family.kind)

        step = Step(
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
            solver = SolverStep(scheduler, (t, sample, *rest), named, self._alpha_after(scheduler, call))
            steered = self._steer(step, solver)
            value = value if steered is None else steered
        result = take(value, t, sample, *rest, **named)
        latents: Tensor = result[0]
        call.latents = latents
        if step.index in call.keep:
            call.steps[step.index] = step
        self._record(call, step, latents, prediction(value))
        self._compute_signals(call, step.index)
        if self._after_step is not None:
            self._after_step(len(call.norms))
        return result

    def _record(self, call: _Call, step: Step, latents: Tensor, consumed: Prediction) -> None:
        """Record the norms of a step that led to `latents`, the solver having consumed a prediction."""
        estimate = step.cond.x0.detach()
        found = {
            "delta": norms(latents - step.sample),
            "z": norms(latents),
            "x0": norms(consumed.x0),
        }
        unknown = torch.full_like(found["z"], torch.nan)
        found["guidance"] = unknown if step.uncond is None else norms(step.cond.value - step.uncond.value)
        found["drift"] = unknown if call.estimate is None else norms(estimate - call.estimate)
        call.estimate = estimate
        if self._norms:
            with torch.no_grad():
                found |= {norm.name: norm(step, latents, call.previous).detach().float() for norm in self._norms}
            call.previous = step
        call.norms.append(found)

    def _compute_signals(self, call: _Call, index: int) -> None:
        """Compute the signals whose last evaluation is number `index`."""
        asking = _ASKING.set(True)
        try:
            for signal in self._signals:
                if index == max(evaluation(place, len(call.timesteps)) for place in signal.evaluations):
                    call.signals[signal.name] = signal(call.trajectory(), self.family.denoiser()).detach().cpu()
        finally:
            _ASKING.reset(asking)


@contextmanager
def watch(
    pipe: Any,
    *,
    keep: Keep = (),
    steer: Steer | None = None,
    after_step: Callable[[int], None] | None = None,
    norms: Sequence[Norm] = (),
    signals: Sequence[Signal] = (),
) -> Iterator[Watch]:
    """Record every generation that `pipe` makes inside the block.

    Several watches may be active at once, and may end in any order. Each sees the predictions as those that began after
    it have steered them.

    Args:
        pipe: a diffusers pipeline of a known family.
        keep: evaluations whose tensors are kept; the norms of all are always recorded.
        steer: called at every evaluation, may replace the prediction that the solver is given.
        after_step: called after every solver step with the number of evaluations done.
        norms: recorded at every evaluation beside those of `NORMS`.
        signals: computed as soon as the evaluations that they need are over; these are kept, too.

    Raises:
        UsageError: for a pipeline of an unknown family, or a step outside the run.

    Example:
        with watch(pipe, keep=(-1,)) as seen:
            image = pipe("a red circle on a blue ground").images[0]
        seen.trajectory.norms["delta"]
    """
    seen = Watch(family_of(pipe), keep, steer, after_step, norms, signals)
    unhook = _after_forward(seen.family.module, seen._on_forward)
    # the scheduler that the block began with, even if the pipeline is given another one inside it
    scheduler = pipe.scheduler
    _attach(scheduler, seen)
    try:
        yield seen
    finally:
        _detach(scheduler, seen)
        unhook()


def _attach(scheduler: Any, seen: Watch) -> None:
    """Have a scheduler's steps recorded by one more watch."""
    with _LOCK:
        watches: list[Watch] | None = getattr(vars(scheduler).get("step"), "watches", None)
        if watches is None:
            watches = []
            _wrap(scheduler, watches)
        watches.append(seen)


def _detach(scheduler: Any, seen: Watch) -> None:
    """Remove a watch; with the last one the scheduler gets its methods back."""
    with _LOCK:
        wrapper = vars(scheduler)["step"]
        wrapper.watches.remove(seen)
        if wrapper.watches:
            return
        for name, method in wrapper.before.items():
            if method is None:
                delattr(scheduler, name)
            else:
                setattr(scheduler, name, method)


def _wrap(scheduler: Any, watches: list[Watch]) -> None:
    """Replace a scheduler's `step` and `set_timesteps` by ones that tell the watches."""
    step, set_timesteps = scheduler.step, scheduler.set_timesteps
    before = {name: vars(scheduler).get(name) for name in ("step", "set_timesteps")}
    names = list(inspect.signature(step).parameters)[:3]

    # pipelines inspect the signatures of both methods, which `wraps` keeps
    @wraps(step)
    def watched_step(*args: Any, **kwargs: Any) -> Any:
        # a pipeline may give any of the three by name
        value, t, sample = (args[at] if at < len(args) else kwargs.pop(name) for at, name in enumerate(names))
        taken: SolverCall = step
        for seen in tuple(watches):
            taken = _recorded(seen, scheduler, taken)
        return taken(value, t, sample, *args[3:], **kwargs)

    @wraps(set_timesteps)
    def watched_set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = set_timesteps(*args, **kwargs)
        for seen in tuple(watches):
            seen._begin(tuple(float(t) for t in scheduler.timesteps))
        return result

    watched_step.watches = watches  # type: ignore[attr-defined]
    watched_step.before = before  # type: ignore[attr-defined]
    watched_step.unwatched = step  # type: ignore[attr-defined]
    scheduler.step, scheduler.set_timesteps = watched_step, watched_set_timesteps


def _recorded(seen: Watch, scheduler: Any, take: SolverCall) -> SolverCall:
    """`take`, recorded by a watch."""

    def recorded(value: Tensor, t: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
        return seen._on_step(scheduler, take, value, t, sample, rest, named)

    return recorded


def _after_forward(module: nn.Module, hook: Callable[..., None]) -> Callable[[], None]:
    """Have `hook(module, args, kwargs, output)` called after every call of the module; returns how to undo that."""
    compiled = vars(module).get("_compiled_call_impl")
    if compiled is None:
        return module.register_forward_hook(hook, with_kwargs=True).remove
    # a module compiled in place would compile its hooks too, and itself again for each of them
    with _LOCK:
        hooks: list[Callable[..., None]] | None = getattr(compiled, "hooks", None)
        if hooks is None:
            inner, hooks = compiled, []

            @wraps(inner)
            def call(*args: Any, **kwargs: Any) -> Any:
                output = inner(*args, **kwargs)
                for registered in tuple(call.hooks):  # type: ignore[attr-defined]
                    registered(module, args, kwargs, output)
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
