"""Several maps from one generation."""

from collections.abc import Iterator, Sequence

from cryptomnesia.localizers.base import Localizer, Map, Watched, map_where_finite
from cryptomnesia.localizers.baseline import Baseline, baseline_for
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.generation import Batch, Progress, generate
from cryptomnesia.tracing.trajectory import Norm, Place, Signal

Mapped = tuple[Batch, dict[str, Map]]
"""A batch and its maps by the name of the localizer."""


def places(localizers: Sequence[Localizer]) -> set[Place]:
    """The evaluations whose tensors the maps need."""
    return {place for localizer in localizers for place in localizer.evaluations}


def maps_of(
    setup: Setup, localizers: Sequence[Localizer], batch: Batch, rows: Sequence[int] | None = None
) -> dict[str, Map]:
    """The maps of the images of a batch by the name of the localizer, on the CPU.

    Localizers with the same baseline share the conditioning of its captions and, at the same evaluation, its
    prediction. The probes of an image come from its seed, so its maps do not depend on the batch. An image for which
    the network's output is not finite gets a map of NaN.

    Args:
        setup: of the generation.
        localizers: that work in the set-up.
        batch: generated images, with the tensors that the maps need.
        rows: numbers of the images to be mapped; all of them by default.
    """
    everything = list(range(len(batch.prompts)))
    rows = everything if rows is None else list(rows)
    prompts, seeds = [batch.prompts[row] for row in rows], [batch.seeds[row] for row in rows]
    trajectory = batch.trajectory if rows == everything else batch.trajectory.rows(rows)
    denoiser = setup.family.denoiser()
    readings: dict[str, Baseline | None] = {}
    evaluated: dict[tuple[str, int], Baseline] = {}
    maps = {}
    for localizer in localizers:
        against = localizer.baseline
        if against not in readings:
            readings[against] = baseline_for(setup, against, prompts)
        baseline = readings[against]
        if baseline is not None:
            step = trajectory.step(localizer.evaluations[0])
            key = against, step.index
            if key not in evaluated:
                evaluated[key] = baseline.at(step)
            baseline = evaluated[key]
        watched = Watched(trajectory, denoiser, baseline, prompts, seeds, setup.pipe)
        found = map_where_finite(localizer, watched)
        maps[localizer.name] = Map(found.values.cpu(), None if found.errors is None else found.errors.cpu())
    return maps


def mapped(
    setup: Setup,
    prompts: Sequence[str],
    seeds: Sequence[int],
    localizers: Sequence[Localizer],
    *,
    batch_size: int,
    norms: Sequence[Norm] = (),
    signals: Sequence[Signal] = (),
    decode: bool,
    progress: Progress | None = None,
) -> Iterator[Mapped]:
    """Generate, and compute the maps of every batch; arguments as for `generate`, which checks them at the call."""
    batches = generate(
        setup,
        prompts,
        seeds,
        batch_size=batch_size,
        keep=places(localizers),
        norms=norms,
        signals=signals,
        decode=decode,
        progress=progress,
    )
    return ((batch, maps_of(setup, localizers, batch)) for batch in batches)
