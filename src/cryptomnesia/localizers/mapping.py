"""Several maps from one generation."""

from collections.abc import Iterator, Sequence

import torch

from cryptomnesia.errors import NotFiniteError
from cryptomnesia.localizers.base import Localizer, Map, Watched, unknown
from cryptomnesia.localizers.baseline import Baseline, baseline_for
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.generation import Batch, Progress, generate
from cryptomnesia.tracing.trajectory import Norm, Place, Signal, Trajectory

Mapped = tuple[Batch, dict[str, Map]]
"""A batch and its maps by the name of the localizer."""


def places(localizers: Sequence[Localizer]) -> set[Place]:
    """The evaluations whose tensors the maps need."""
    return {place for localizer in localizers for place in localizer.evaluations}


def maps_of(
    setup: Setup, localizers: Sequence[Localizer], batch: Batch, rows: Sequence[int] | None = None
) -> dict[str, Map]:
    """The maps of a batch's images, or of some of them, by the name of the localizer.

    Localizers with the same baseline share what it makes of the captions and, at the same evaluation, its prediction.
    An image's probes come from its seed, so its maps do not depend on the batch. An image for which the network's
    output is not finite has a map of NaN, and the other images of the batch have theirs.

    Args:
        setup: of the generation.
        localizers: that work in the set-up.
        batch: generated images, with the tensors that the maps need.
        rows: numbers of the images; all of them by default.
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
        try:
            found = localizer.map(watched)
        except NotFiniteError:
            maps[localizer.name] = _by_halves(setup, localizer, batch, rows, trajectory)
        else:
            maps[localizer.name] = Map(found.values.cpu(), None if found.errors is None else found.errors.cpu())
    return maps


def _by_halves(setup: Setup, localizer: Localizer, batch: Batch, rows: Sequence[int], trajectory: Trajectory) -> Map:
    """The map of images of which at least one has no finite map: that of each half, down to single images."""
    if len(rows) == 1:
        return unknown(localizer, trajectory)
    middle = len(rows) // 2
    halves = [maps_of(setup, [localizer], batch, part)[localizer.name] for part in (rows[:middle], rows[middle:])]
    values = torch.cat([half.values for half in halves])
    if all(half.errors is None for half in halves):
        return Map(values)
    # an image without a map has no errors either
    errors = [torch.full_like(half.values, torch.nan) if half.errors is None else half.errors for half in halves]
    return Map(values, torch.cat(errors))


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
    """Generate, and compute the maps of every batch; arguments as for `generate`."""
    for batch in generate(
        setup,
        prompts,
        seeds,
        batch_size=batch_size,
        keep=places(localizers),
        norms=norms,
        signals=signals,
        decode=decode,
        progress=progress,
    ):
        yield batch, maps_of(setup, localizers, batch)
