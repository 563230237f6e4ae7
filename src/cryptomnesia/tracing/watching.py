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

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.denoiser import Prediction
from cryptomnesia.pipelines.families import Family, NetworkCall, family_of, vouch
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.schedule import Level
from cryptomnesia.pipelines.solvers import alpha_after, level_of, levels_of
from cryptomnesia.tracing.attaching import SolverCall, after_forward, attach, change_forward, detach
from cryptomnesia.tracing.callers import caller_of, captions_of
from cryptomnesia.tracing.recording import Norms
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import NORMS, Norm, Place, Signal, Step, Trajectory, evaluation

_ASKING: ContextVar[bool] = ContextVar("asking", default=False)
"""Whether the network is being evaluated for a signal; no watch records such an evaluation."""

Keep = Collection[Place] | Literal["all"]
"""The evaluations whose tensors are kept."""

Steer = Callable[[Step, SolverStep], Tensor | None]
"""Takes an evaluation and the solver step that uses it. Returns the prediction (B, C, h, w) that the solver is given
instead of `step.guided.value`, or None to change nothing."""


Change = Callable[[int, Inputs], Inputs | None]
"""Takes the number of an evaluation and the conditioning of its conditional branch, all images of the call. Returns
another conditioning, or None to change nothing."""


@dataclass
class _Call:
    """What has been recorded of one call of the pipeline.

    Attributes:
        timesteps: of the evaluations that the call will make, as far as is known before the first one.
        levels: timestep → noise level, where the timestep decides it.
        keep: numbers of the evaluations whose tensors are kept.
        pipe: the pipeline whose call it is.
        captions: one per image that the call was asked for, None where they were not given in words.
    """

    timesteps: tuple[float, ...]
    pipe: Any
    captions: list[str] | None = None
    keep: frozenset[int] = frozenset()
    steps: dict[int, Step] = field(default_factory=dict)
    norms: Norms = field(default_factory=Norms)
    levels: Mapping[float, Level] = field(default_factory=dict)
    latents: Tensor | None = None
    signals: dict[str, Tensor] = field(default_factory=dict)
    thread: int = field(default_factory=get_ident)

    @property
    def complete(self) -> bool:
        return len(self.norms) == len(self.timesteps)

    def trajectory(self) -> Trajectory:
        assert self.latents is not None
        captions = self.captions if self.captions is not None and len(self.captions) == self.norms.images else None
        return Trajectory(
            self.timesteps,
            self.norms.columns(),
            dict(self.steps),
            self.latents,
            self.complete,
            dict(self.signals),
            None if captions is None else tuple(captions),
            self.pipe,
        )


class Watch:
    """The record of all generations of a `watch` block."""

    def __init__(
        self,
        pipe: Any,
        keep: Keep = (),
        steer: Steer | None = None,
        after_step: Callable[[int], None] | None = None,
        norms: Sequence[Norm] = (),
        signals: Sequence[Signal] = (),
        condition: tuple[int, Change] | None = None,
    ) -> None:
        """Store the settings; `watch` attaches the record to a pipeline. Arguments as for `watch`.

        Raises:
            UsageError: for two norms or signals of the same name, or one that has the name of a norm in `NORMS`.
        """
        _check_names([*norms, *signals])
        self.pipe = pipe
        self.family = family_of(pipe)
        self._keep: Keep = keep
        self._steer = steer
        self._after_step = after_step
        self._norms = norms
        self._signals = signals
        self._condition = condition
        self._calls: list[_Call] = []
        self._pending: list[NetworkCall] = []

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
        if self._calls and not self._calls[-1].norms:
            raise UsageError(
                "the newest call took no step of the solver with a prediction of the network, so nothing was recorded; "
                "give it more steps, or a larger `strength` if it has one"
            )
        if not self._calls:
            raise UsageError(
                "no generation was watched; call the pipeline inside the `with` block, "
                "and set its scheduler before the block"
            )
        return self._calls[-1].trajectory()

    def begin(self, scheduler: Any) -> None:
        """Begin the record of a new call of the pipeline, which has just set the scheduler's timesteps.

        Raises:
            UsageError: if another pipeline of another family shares the scheduler and makes the call, or there are
                signals to compute and the network has a cache.
        """
        caller = caller_of(self.family.module) or self.pipe
        if caller is not self.pipe and type(family_of(caller)) is not type(self.family):
            raise UsageError(
                f"a {type(caller).__name__} runs on the scheduler of the {type(self.pipe).__name__} that is being "
                "watched; watch the pipeline that is called, or give it a scheduler of its own"
            )
        if self._signals:
            # a network that cannot be evaluated beside the run is refused before its first evaluation
            self.family.denoiser()
        self._pending = []
        captions = captions_of(caller) if getattr(self.family, "keeps_captions", True) else None
        timesteps = getattr(scheduler.timesteps, "tolist", lambda: scheduler.timesteps)()
        self._calls.append(_Call(tuple(map(float, timesteps)), caller, captions, norms=Norms(self._norms)))

    def on_call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The arguments with which the network is called in place of these, None for the same."""
        call = self._recording()
        if call is None or self._condition is None:
            return None
        images, change = self._condition
        given = NetworkCall(args, kwargs, None, module)
        family: Any = self.family  # `check_conditioned` has seen it
        changed = family.conditioned(given, images, len(self._pending), partial(change, len(call.norms)))
        return changed.args, changed.kwargs

    def on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Remember a call of the network until the solver takes its step."""
        if self._recording() is not None:
            self._pending.append(NetworkCall(args, kwargs, output, module))

    def _recording(self) -> _Call | None:
        """The call of the pipeline that an evaluation of the network belongs to, None if it belongs to none."""
        # inside the block the network may also be evaluated outside a generation, for instance by a localizer, and
        # in another thread by another pipeline that shares it
        call = self._calls[-1] if self._calls else None
        return call if call and not (call.complete or _ASKING.get()) and call.thread == get_ident() else None

    def _plan(self, call: _Call, scheduler: Any, t: Any) -> None:
        """Find out at the first step which of the scheduler's timesteps the call will use."""
        # a call that hands its latents to another model leaves out the last timesteps
        planned = getattr(call.pipe, "_num_timesteps", None)
        # and one that begins from a picture leaves out the first ones
        first = getattr(scheduler, "begin_index", None)
        if first is None:
            places = [place for place, known in enumerate(call.timesteps) if known == float(t)] or [0]
            # PNDM has one timestep twice
            first = places[-1] if places[-1] + (planned or 0) == len(call.timesteps) else places[0]
        last = first + planned if isinstance(planned, int) else None
        call.timesteps = call.timesteps[first:last]
        # one by one they take longer
        call.levels = levels_of(scheduler, call.timesteps)
        count = len(call.timesteps)
        wanted = range(count) if self._keep == "all" else self._keep
        needed = [place for signal in self._signals for place in signal.evaluations]
        call.keep = frozenset(evaluation(place, count) for place in (*wanted, *needed))

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
        pending, self._pending = self._pending, []
        seen = self.family.read(pending, sample) if pending else None
        if seen is None:
            return take(value, t, sample, *rest, **named)
        call = self._calls[-1]
        if not call.norms:
            self._plan(call, scheduler, t)
        x, cond, uncond = seen.x, seen.cond, seen.uncond
        level = call.levels.get(float(t)) or level_of(scheduler, t)
        # behind the prediction some models give the solver a variance, in further channels
        channels, variance = sample.shape[1], None
        if value.shape[1] > channels:
            value, variance = value[:, :channels], value[:, channels:]

        def prediction(network_value: Tensor) -> Prediction:
            return Prediction(x, network_value, level.alpha, level.sigma, self.family.kind)

        step = Step(
            index=len(call.norms),
            planned=len(call.timesteps),
            t=level.t,
            cond=prediction(cond.value),
            uncond=None if uncond is None else prediction(uncond.value),
            guided=prediction(value),
            sample=sample,
            cond_inputs=cond.inputs,
            uncond_inputs=None if uncond is None else uncond.inputs,
            options=named,
        )
        if self._steer is not None:
            following = call.timesteps[step.index + 1] if step.index + 1 < step.planned else None
            solver = SolverStep(
                scheduler, (t, sample, *rest), named, alpha_after(scheduler, t, following), beside=variance
            )
            steered = self._steer(step, solver)
            value = value if steered is None else steered
        given = value if variance is None else torch.cat([value, variance], dim=1)
        result = take(given, t, sample, *rest, **named)
        latents: Tensor = result[0]
        call.latents = latents
        if step.index in call.keep:
            call.steps[step.index] = step
        call.norms.add(step, latents, step.guided if value is step.guided.value else prediction(value))
        if self._signals:
            self._compute_signals(call, step.index)
        if self._after_step is not None:
            self._after_step(len(call.norms))
        return result

    def _compute_signals(self, call: _Call, index: int) -> None:
        """Compute the signals for which evaluation number `index` is the last that they need."""
        asking = _ASKING.set(True)
        try:
            for signal in self._signals:
                if index == max(evaluation(place, len(call.timesteps)) for place in signal.evaluations):
                    values = signal(call.trajectory(), self.family.denoiser()).detach().cpu()
                    if values.dim() == 0 or len(values) != call.norms.images:
                        raise UsageError(
                            f"the signal {signal.name!r} gave values of shape {tuple(values.shape)} for "
                            f"{call.norms.images} images; the first dimension has to be the images"
                        )
                    call.signals[signal.name] = values
        finally:
            _ASKING.reset(asking)


@contextmanager
def watch(
    pipe: Any,
    *,
    family: str | type[Family] | None = None,
    keep: Keep = (),
    steer: Steer | None = None,
    after_step: Callable[[int], None] | None = None,
    norms: Sequence[Norm] = (),
    signals: Sequence[Signal] = (),
    condition: tuple[int, Change] | None = None,
) -> Iterator[Watch]:
    """Record every generation that `pipe` makes inside the block.

    Several watches may be active at once, and they may end in any order. A watch that began earlier records and steers
    the predictions that the watches that began later have steered already.

    Args:
        pipe: a diffusers pipeline of a known family.
        family: vouches that the pipeline calls its network as the pipelines of this family do; see
            `cryptomnesia.vouch`.
        keep: evaluations whose tensors are kept, or `"all"`. The norms of all evaluations are always recorded.
        steer: called at every evaluation; it can replace the prediction that the solver is given.
        after_step: called after every solver step with the number of evaluations done.
        norms: further norms to record at every evaluation, beside those of `NORMS`.
        signals: signals to compute. A signal is computed as soon as the evaluations that it needs are over; their
            tensors are kept.
        condition: number of images of the call, and what changes the conditioning of the conditional branch at every
            evaluation.

    Raises:
        UsageError: for a pipeline of an unknown family, captions that cannot be changed, names of norms or signals that
            are taken, or, during the generation, an evaluation outside the run.

    Example:
        with watch(pipe, keep=(-1,)) as seen:
            image = pipe("a red circle on a blue ground").images[0]
        seen.trajectory.norms["delta"]
    """
    if family is not None:
        vouch(pipe, family)
    seen = Watch(pipe, keep, steer, after_step, norms, signals, condition)
    # families of other packages need not say that there is nothing beside the network
    networks = (seen.family.module, *getattr(seen.family, "beside", ()))
    if condition is not None:
        check_conditioned(pipe)
    unhook = [after_forward(network, seen.on_forward) for network in networks]
    if condition is not None:
        unhook.append(change_forward(seen.family.module, seen.on_call))
    # if the pipeline is given another scheduler inside the block, this one still has to be left as it was
    scheduler = pipe.scheduler
    wrapping = attach(scheduler, seen)
    try:
        yield seen
    finally:
        detach(scheduler, seen, wrapping)
        for remove in unhook:
            remove()


def check_conditioned(pipe: Any) -> None:
    """Refuse a pipeline whose captions cannot be changed while it runs.

    Raises:
        UsageError: naming the pipeline.
    """
    family = family_of(pipe)
    if not family.conditional or getattr(family, "beside", ()) or not hasattr(family, "conditioned"):
        raise UsageError(
            f"the captions of a {type(pipe).__name__} cannot be changed during a run: it takes none, or a second "
            "network reads them as well; use `rephrasing`"
        )


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
