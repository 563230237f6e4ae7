"""The verb `watch`: record every denoiser evaluation and every solver step of a pipeline's own call.

No pipeline is implemented again: the pipeline runs as it is, and two places of it are observed while the `with` block
lasts. A forward hook on the denoiser sees x_t, t, the conditioning and both guidance branches. A wrapper around the
scheduler's `step` sees the guided prediction that the solver is given (after guidance rescaling, if there is any) and
the latents before and after the step; it can also give the solver another prediction. The hook alone would not be
enough, because the last latents never reach the denoiser again, and because solvers differ in what they make of a
prediction. Every pipeline calls the scheduler's `set_timesteps` once per generation: this marks the beginning of a run.

Observing changes no tensor and only computes norms, so the image is bit-identical. A signal that is asked for evaluates
the network between two steps on tensors of its own; the image is bit-identical then as well.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Prediction, norms
from cryptomnesia.pipelines.families import Evaluation, Family, family_of
from cryptomnesia.tracing.attaching import SolverCall, after_forward, attach, detach
from cryptomnesia.tracing.steering import VARIANCE_EXPLODING, SolverStep
from cryptomnesia.tracing.trajectory import NORMS, Norm, Place, Signal, Step, Trajectory, evaluation

_ASKING: ContextVar[bool] = ContextVar("asking", default=False)
"""Whether the network is being evaluated for a signal; no watch records such an evaluation."""

Keep = Collection[Place] | Literal["all"]
"""The evaluations whose tensors are kept."""

Steer = Callable[[Step, SolverStep], Tensor | None]
"""Takes an evaluation and the solver step that uses it. Returns the prediction (B, C, h, w) that the solver is given
instead of `step.guided.value`, or None to change nothing."""


@dataclass
class _Call:
    """What has been recorded of one call of the pipeline."""

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
    """The record of all generations of a `watch` block."""

    def __init__(
        self,
        family: Family,
        keep: Keep = (),
        steer: Steer | None = None,
        after_step: Callable[[int], None] | None = None,
        norms: Sequence[Norm] = (),
        signals: Sequence[Signal] = (),
    ) -> None:
        """Store the settings; `watch` attaches the record to a pipeline. Arguments as for `watch`.

        Raises:
            UsageError: for two norms or signals of the same name, or one that has the name of a norm in `NORMS`.
        """
        _check_names([*norms, *signals])
        self.family = family
        self._keep: Keep = keep
        self._steer = steer
        self._after_step = after_step
        self._norms = norms
        self._signals = signals
        self._calls: list[_Call] = []
        self._pending: Evaluation | None = None

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trajectories of all calls of the pipeline that took at least one step, oldest first."""
        return [call.trajectory() for call in self._calls if call.norms]

    @property
    def trajectory(self) -> Trajectory:
        """The trajectory of the newest call.

        Raises:
            UsageError: if the newest call has taken no step yet, or there was none.
        """
        if not self._calls or not self._calls[-1].norms:
            raise UsageError(
                "no generation was watched; call the pipeline inside the `with` block, "
                "and set its scheduler before the block"
            )
        return self._calls[-1].trajectory()

    def begin(self, timesteps: tuple[float, ...]) -> None:
        """Begin the record of a new call of the pipeline."""
        count = len(timesteps)
        wanted = range(count) if self._keep == "all" else self._keep
        needed = [place for signal in self._signals for place in signal.evaluations]
        kept = frozenset(evaluation(place, count) for place in (*wanted, *needed))
        self._pending = None
        self._calls.append(_Call(timesteps, kept))

    def on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Read an evaluation from a call of the network."""
        # inside the block the network may also be evaluated outside a generation, for instance by a localizer, and
        # in another thread by another pipeline that shares it
        call = self._calls[-1] if self._calls else None
        if call is not None and not (call.complete or _ASKING.get()) and call.thread == get_ident():
            value = output if isinstance(output, Tensor) else output[0]
            self._pending = self.family.read(args, kwargs, value, self._pending)

    def _alpha_after(self, scheduler: Any, call: _Call) -> float:
        """The factor of x_0 in the latents that the step in progress leads to."""
        if type(scheduler).__name__ in VARIANCE_EXPLODING:
            return 1.0
        if type(scheduler).__name__ == "DDIMScheduler":
            # with spacing "linspace" DDIM goes to a timestep that is not exactly the next one of the run
            following = (
                int(call.timesteps[len(call.norms)])
                - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
            )
            bar = scheduler.alphas_cumprod[following] if following >= 0 else scheduler.final_alpha_cumprod
            return float(bar) ** 0.5
        if len(call.norms) + 1 < len(call.timesteps):
            return self.family.schedule(call.timesteps[len(call.norms) + 1])[0].item()
        return float(getattr(scheduler, "final_alpha_cumprod", 1.0)) ** 0.5

    def on_step(
        self,
        scheduler: Any,
        take: SolverCall,
        value: Tensor,
        t: Any,
        sample: Tensor,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """Record a step that `take` takes with the prediction `value`, or with the one that steering replaces it by."""
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

    def _record(self, call: _Call, step: Step, latents: Tensor, used: Prediction) -> None:
        """Record the norms of a step that the solver took with the prediction `used` and that led to `latents`."""
        estimate = step.cond.x0.detach()
        recorded = {
            "delta": norms(latents - step.sample),
            "z": norms(latents),
            "x0": norms(used.x0),
        }
        unknown = torch.full_like(recorded["z"], torch.nan)
        recorded["guidance"] = unknown if step.uncond is None else norms(step.cond.value - step.uncond.value)
        recorded["drift"] = unknown if call.estimate is None else norms(estimate - call.estimate)
        call.estimate = estimate
        if self._norms:
            with torch.no_grad():
                for norm in self._norms:
                    recorded[norm.name] = _per_image(norm, norm(step, latents, call.previous), len(latents))
            call.previous = step
        call.norms.append(recorded)

    def _compute_signals(self, call: _Call, index: int) -> None:
        """Compute the signals for which evaluation number `index` is the last that they need."""
        asking = _ASKING.set(True)
        try:
            for signal in self._signals:
                if index == max(evaluation(place, len(call.timesteps)) for place in signal.evaluations):
                    values = signal(call.trajectory(), self.family.denoiser()).detach().cpu()
                    if values.dim() == 0 or len(values) != call.norms[0]["z"].shape[0]:
                        raise UsageError(
                            f"the signal {signal.name!r} gave values of shape {tuple(values.shape)} for "
                            f"{len(call.norms[0]['z'])} images; the first dimension has to be the images"
                        )
                    call.signals[signal.name] = values
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

    Several watches may be active at once, and they may end in any order. A watch that began earlier records and steers
    the predictions that the watches that began later have steered already.

    Args:
        pipe: a diffusers pipeline of a known family.
        keep: evaluations whose tensors are kept, or `"all"`. The norms of all evaluations are always recorded.
        steer: called at every evaluation; it can replace the prediction that the solver is given.
        after_step: called after every solver step with the number of evaluations done.
        norms: further norms to record at every evaluation, beside those of `NORMS`.
        signals: signals to compute. A signal is computed as soon as the evaluations that it needs are over; their
            tensors are kept.

    Raises:
        UsageError: for a pipeline of an unknown family, names of norms or signals that are taken, or, during the
            generation, an evaluation outside the run.

    Example:
        with watch(pipe, keep=(-1,)) as seen:
            image = pipe("a red circle on a blue ground").images[0]
        seen.trajectory.norms["delta"]
    """
    seen = Watch(family_of(pipe), keep, steer, after_step, norms, signals)
    unhook = after_forward(seen.family.module, seen.on_forward)
    # if the pipeline is given another scheduler inside the block, this one still has to be left as it was
    scheduler = pipe.scheduler
    wrapping = attach(scheduler, seen)
    try:
        yield seen
    finally:
        detach(scheduler, seen, wrapping)
        unhook()


def _check_names(recorded: Sequence[Norm | Signal]) -> None:
    """Refuse names of norms and signals that are taken.

    Raises:
        UsageError: naming the first of them.
    """
    taken = set(NORMS)
    for item in recorded:
        if item.name in NORMS:
            raise UsageError(
                f"got a norm or signal called {item.name!r}, which is always recorded; give it another name"
            )
        if item.name in taken:
            raise UsageError(f"got two norms or signals called {item.name!r}; give one of them another name")
        taken.add(item.name)


def _per_image(norm: Norm, values: Tensor, images: int) -> Tensor:
    """The values of a norm as (B,) float32.

    Raises:
        UsageError: for values of another shape.
    """
    if values.shape != (images,):
        raise UsageError(
            f"the norm {norm.name!r} gave values of shape {tuple(values.shape)} for {images} images; it has to give "
            "one number per image"
        )
    return values.detach().float()
