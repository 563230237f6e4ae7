"""What an audit would cost, before it is begun."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptomnesia.attribution import cost as cost_of_words
from cryptomnesia.auditing.planning import Plan, plan
from cryptomnesia.auditing.requests import Request
from cryptomnesia.guarding.settling import corrects_runs
from cryptomnesia.matching import SSCD, Tiles
from cryptomnesia.matching.sources import source_of
from cryptomnesia.settings import AuditSettings
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.watching import watch

_ROW = 10_000
"""Bytes of the evidence on one image, about, without its map."""

_PLACE = 9
"""Bytes of a place of a map and its mask."""

_MEASURED = 3
"""Evaluations that are measured. The first one is not counted: it also warms up."""


@dataclass(frozen=True)
class Cost:
    """The cost of a run in which nothing is flagged, and what every flagged image adds.

    Attributes:
        images: number of images to be judged.
        references: number of reference images to be made before.
        evaluations: denoiser evaluations of all images; one evaluation is one step of one image with all its guidance
            branches.
        flagged_evaluations: further evaluations for a flagged image: its map, its words, and the mitigation or, at
            most, all that the guard tries.
        seconds: on this machine, from a measured evaluation.
        flagged_seconds: further seconds for a flagged image.
        bytes: on disk at most, with the index of training images that the run makes.
    """

    images: int
    references: int
    evaluations: int
    flagged_evaluations: int
    seconds: float
    flagged_seconds: float
    bytes: int

    def __str__(self) -> str:
        """The cost in words."""
        return (
            f"{self.images} images and {self.references} references: {self.evaluations:,} denoiser evaluations, "
            f"about {_time(self.seconds)} on this machine, and {self.bytes / 2**20:,.0f} MiB on disk at most\n"
            f"for every flagged image {self.flagged_evaluations} evaluations more, about {_time(self.flagged_seconds)}"
        )


def estimate(model: Any, prompts: Iterable[str] | str | Path, **settings: Any) -> Cost:
    """What `audit` with the same arguments would cost; makes three evaluations of one batch to measure it.

    Raises:
        UsageError: for settings that do not fit.
    """
    planned = plan(Request.of(model, prompts, settings))
    units = planned.units
    references = 0 if planned.references is None else len(planned.references)
    measured = _measured(planned, min(planned.settings.batch_size, len(units)))
    of_map = 0.0 if planned.localizer is None else planned.localizer.cost(planned.setup)
    of_image = measured.evaluations + planned.detector.cost(planned.setup)
    if planned.policy is None:
        of_mitigation = 0.0 if planned.mitigation is None else planned.mitigation.cost(planned.setup)
    else:
        of_mitigation = planned.policy.cost(planned.setup, planned.mitigation)
    # every reference has a map
    evaluations = math.ceil(len(units) * of_image + references * (of_image + of_map))
    if planned.policy is not None and corrects_runs(planned.policy, planned.mitigation):
        # a guard changes the runs of all images, and withholds what stays flagged
        evaluations += math.ceil(len(units) * of_image)
        of_mitigation = 0.0
    of_words = cost_of_words(planned.setup, planned.prompts) if planned.settings.words else 0.0
    flagged = math.ceil(of_map + of_mitigation + of_words)
    rows = len(units) + references
    return Cost(
        images=len(units),
        references=references,
        evaluations=evaluations,
        flagged_evaluations=flagged,
        seconds=evaluations * measured.seconds,
        flagged_seconds=flagged * measured.seconds,
        # a flagged image has another one beside it
        bytes=len(units) * 2 * measured.picture
        + rows * (_ROW + _PLACE * measured.places)
        + _index_bytes(planned.settings),
    )


def _index_bytes(settings: AuditSettings) -> int:
    """The bytes of an index of the training images, 0 if none is to be made."""
    if settings.training_images is None:
        return 0
    pictures = source_of(settings.training_images).total
    descriptor = Tiles() if settings.sscd is None else SSCD(settings.sscd)
    return pictures * (2 * math.prod(descriptor.shape) + 100)


@dataclass(frozen=True)
class _Measured:
    """What was measured of a run.

    Attributes:
        evaluations: of a run.
        seconds: of one evaluation of one image.
        picture: bytes of a picture.
        places: places of a map.
    """

    evaluations: int
    seconds: float
    picture: int
    places: int


class _EnoughError(Exception):
    """Ends a run whose first evaluations have been measured."""


def _measured(planned: Plan, size: int) -> _Measured:
    """Begin to generate `size` images, and break off after a few evaluations."""
    pipe = planned.setup.pipe
    moments: list[float] = []

    def stop(_: float) -> None:
        moments.append(time.perf_counter())
        if len(moments) == _MEASURED:
            raise _EnoughError

    prompts, seeds = zip(*planned.units[:size], strict=True)
    with watch(pipe) as seen:
        try:
            list(generate(planned.setup, prompts, seeds, batch_size=size, decode=False, progress=stop))
        except _EnoughError:
            pass
    trajectory = seen.trajectory
    latents = trajectory.latents
    # a token of packed latents holds 2×2 places
    places = latents[0, 0].numel() if latents.dim() == 4 else 4 * latents.shape[1]
    across = pipe.vae_scale_factor if hasattr(pipe, "vae") else 1
    spent = (moments[-1] - moments[0]) / max(1, len(moments) - 1)
    return _Measured(len(trajectory.timesteps), spent / size, 3 * places * across**2, places)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
