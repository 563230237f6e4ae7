"""Kinds of maps: what makes each, what it is compared with, and several of them from one generation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers import (
    LOCALIZERS,
    Baseline,
    BrightEnding,
    Collapse,
    Curvature,
    CurvatureDifference,
    DiagonalEstimator,
    Localizer,
    Watched,
    empty_caption,
    end_positions,
)
from cryptomnesia.localizers.baseline import check_checkpoint, reading
from cryptomnesia.localizers.bright_ending import cross_attention
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import Batch, Progress, generate
from cryptomnesia.tracing.trajectory import Place, Signal

CHECKPOINT = "-checkpoint"
"""Behind a method's name: against the less-trained checkpoint."""


Compared = Literal["nothing", "run", "empty", "checkpoint"]


@dataclass(frozen=True)
class Method:
    """One kind of map: a localizer, and what it is compared with.

    Attributes:
        name: the localizer's, with `-checkpoint` behind it where the baseline is a checkpoint.
        localizer: that makes the map.
        baseline: `nothing`, if the localizer subtracts none; `run`, the unconditional branch of the generation;
            `empty`, one more evaluation with an empty caption; `checkpoint`, a less-trained model.
    """

    name: str
    localizer: Localizer
    baseline: Compared


def method(
    name: str, *, step: Place | None = None, estimator: DiagonalEstimator | None = None, empty: bool = False
) -> Method:
    """The method called `name`, one of `LOCALIZERS`, or one that takes a baseline with `-checkpoint` behind it.

    Args:
        name: for instance `curvature-difference-checkpoint`.
        step: the evaluation that is looked at. By default the method's own: the last one, of curvature the one before,
            of collapse the one three tenths into the run.
        estimator: for the methods that need one.
        empty: compare with an empty caption rather than with the run's own unconditional branch.

    Raises:
        UsageError: for an unknown name.
    """
    plain = name.removesuffix(CHECKPOINT)
    kind = LOCALIZERS.get(plain)
    if kind is None or (plain != name and not kind.differs):
        known = [*LOCALIZERS, *(f"{each}{CHECKPOINT}" for each, made in LOCALIZERS.items() if made.differs)]
        raise UsageError(f"got the unknown map {name!r}; known are {', '.join(known)}")
    made = kind() if step is None else kind(step)
    if estimator is not None and isinstance(made, Collapse | CurvatureDifference | Curvature):
        made = replace(made, estimator=estimator)
    compared: Compared = (
        "nothing" if not kind.differs else "checkpoint" if plain != name else "empty" if empty else "run"
    )
    return Method(name, made, compared)


def resolved(methods: Sequence[Method | str]) -> list[Method]:
    """Methods, with every name replaced by the method that it stands for."""
    return [method(each) if isinstance(each, str) else each for each in methods]


def check_methods(pipe: Any, sampling: Sampling, methods: Sequence[Method], other: Any = None) -> None:
    """See that every method has what it needs; arguments as for `localize`.

    Raises:
        UsageError: saying what is missing.
    """
    adapter = adapter_for(pipe)
    scaled = {"cross_attention_kwargs", "joint_attention_kwargs"} & sampling.options.keys()
    if scaled:
        raise UsageError(f"maps evaluate the network without {scaled.pop()}; merge what it scales into the weights")
    if not methods:
        raise UsageError(f"got no map to make; known are {', '.join(LOCALIZERS)}")
    names = [each.name for each in methods]
    if len(set(names)) < len(names):
        raise UsageError(f"got the maps {', '.join(names)}; give every map once, steps one after the other")
    for each in methods:
        if isinstance(each.localizer, BrightEnding):
            if not adapter.conditional:
                raise UsageError(
                    f"a {type(pipe).__name__} has no captions to attend to; use another map than {each.name}"
                )
            cross_attention(adapter.module)
        check_signal(pipe, sampling, each.localizer)
        if each.baseline == "run" and not adapter.guided_in(sampling):
            raise UsageError(
                f"{each.name} needs the unconditional branch, and with these settings {type(pipe).__name__} has none; "
                "give guidance above 1 to a model that is not distilled, a checkpoint, or ask for an empty caption"
            )
        if each.baseline == "checkpoint" and other is None:
            raise UsageError(f"{each.name} needs a less-trained checkpoint of the model; give one as the baseline")
        if each.baseline == "empty" and not adapter.conditional:
            raise UsageError(f"a {type(pipe).__name__} has no captions, and so no empty one; give a checkpoint")
    if any(each.baseline == "checkpoint" for each in methods):
        check_checkpoint(pipe, other)


def check_signal(pipe: Any, sampling: Sampling, localizer: Localizer) -> None:
    """Refuse `collapse` at the first evaluation of a flow model, which sees nothing but noise.

    Raises:
        UsageError: naming the steps that are too few.
    """
    if not isinstance(localizer, Collapse) or adapter_for(pipe).kind != "flow_prediction":
        return
    # solvers make as many evaluations as steps, or more; what lies beyond is seen when it is looked at
    share = localizer.step if isinstance(localizer.step, float) else localizer.step / sampling.steps
    if localizer.step == -sampling.steps or 0 <= share * sampling.steps < 1:
        raise UsageError(
            f"with {sampling.steps} steps {localizer.name} would look at pure noise; give more, or a later evaluation"
        )


Mapped = tuple[Batch, dict[str, Tensor], dict[str, Tensor]]
"""A batch, its maps by method, and the standard errors of those that are estimated, (B, h, w) on the CPU."""


def mapped(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    methods: Sequence[Method],
    other: Any,
    *,
    batch_size: int,
    signals: Sequence[Signal] = (),
    decode: bool,
    progress: Progress | None,
) -> Iterator[Mapped]:
    """Generate, and map every batch."""
    view = adapter_for(pipe).denoiser()
    for batch in generate(
        pipe,
        prompts,
        seeds,
        sampling,
        batch_size=batch_size,
        keep={place for each in methods for place in each.localizer.evaluations},
        signals=signals,
        decode=decode,
        progress=progress,
    ):
        attention = any(isinstance(each.localizer, BrightEnding) for each in methods)
        ends = end_positions(pipe, batch.prompts) if attention else None
        asked: dict[str, Baseline] = {}
        answered: dict[tuple[str, int], Baseline] = {}
        maps, errors = {}, {}
        for each in methods:
            step, baseline = batch.trajectory.step(each.localizer.evaluations[0]), None
            if each.baseline in ("empty", "checkpoint"):
                if each.baseline not in asked:
                    asked[each.baseline] = (
                        empty_caption(pipe, len(batch.prompts), sampling)
                        if each.baseline == "empty"
                        else reading(other, batch.prompts, sampling)
                    )
                # methods that look at the same evaluation share the baseline's
                key = each.baseline, step.index
                baseline = answered[key] = answered.get(key) or asked[each.baseline].at(step)
            watched = Watched(batch.trajectory, view, baseline, ends, batch.seeds)
            if isinstance(each.localizer, CurvatureDifference | Curvature):
                found = each.localizer.estimate(watched)
                maps[each.name], errors[each.name] = found.value.relu().cpu(), found.error.cpu()
            elif isinstance(each.localizer, Collapse):
                found = each.localizer.estimate(watched)
                maps[each.name] = each.localizer.filtered(found.value, watched).cpu()
                errors[each.name] = found.error.cpu()
            else:
                maps[each.name] = each.localizer.map(watched).cpu()
        yield batch, maps, errors


def in_words(methods: Sequence[Method], other: Any) -> dict[str, str]:
    """Method name → everything that changes its map."""
    against = {each.baseline: each.baseline for each in methods}
    if "checkpoint" in against:
        against["checkpoint"] += f" {weights_digest(other)[:12]}"
    said = {}
    for each in methods:
        made = each.localizer
        places = " and ".join(str(place) for place in made.evaluations)
        words = [f"evaluation {places}", f"against {against[each.baseline]}"]
        if isinstance(made, Collapse | CurvatureDifference | Curvature):
            how = made.estimator
            probes = f"{how.probes} random probes"
            if how.design == "orthogonal":
                probes = f"{how.probes} probes orthogonal in {how.group} on a lattice"
            words += [probes, f"{how.engine} with steps of {how.step:g}", f"seed {how.seed}"]
            if how.wanted is not None:
                words.append(f"until {how.wanted:g}")
        said[each.name] = ", ".join(words)
    return said
