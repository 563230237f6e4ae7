"""What an audit would cost, before it is begun."""

import math
import time
from dataclasses import dataclass

from cryptomnesia.auditing.options import Settings
from cryptomnesia.auditing.run import Setup
from cryptomnesia.detectors import SIGNALS
from cryptomnesia.localizers import BrightEnding, Collapse, Curvature, CurvatureDifference, Localizer
from cryptomnesia.matching import SSCD, Tiles
from cryptomnesia.matching.building import check_folder, pictures_of
from cryptomnesia.prompts import read_prompts
from cryptomnesia.tracing.generation import generate

_ROW = 10_000
"""Bytes of the evidence on one image, about, without its map."""

_PLACE = 9
"""Bytes of a place of a map and its mask."""


@dataclass(frozen=True)
class Cost:
    """Of a run in which nothing is flagged; what flagged images cost more is given for each of them.

    Attributes:
        images: to be judged.
        references: to be made beforehand.
        evaluations: of the denoiser, one for one image and one step; with guidance each has two branches.
        flagged_evaluations: more of them for a flagged image: its map, the search for words, another image.
        seconds: on this machine, from a measured evaluation.
        flagged_seconds: more for a flagged image.
        bytes: on disk, at most, with the index that the run makes of training images.
    """

    images: int
    references: int
    evaluations: int
    flagged_evaluations: int
    seconds: float
    flagged_seconds: float
    bytes: int

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.images} images and {self.references} references: {self.evaluations:,} denoiser evaluations, "
            f"about {_time(self.seconds)} on this machine, and {self.bytes / 2**20:,.0f} MiB on disk at most\n"
            f"every flagged image: {self.flagged_evaluations} evaluations more, about {_time(self.flagged_seconds)}"
        )


def estimate(settings: Settings) -> Cost:
    """What a run of these settings would cost; makes three evaluations of one batch to measure it.

    Raises:
        UsageError: for settings that do not fit.
    """
    setup = Setup.load(settings)
    units = setup.units
    references = 0 if settings.references is None else len(read_prompts(settings.references))
    planned, seconds, picture, places = _measured(setup, min(settings.batch_size, len(units)))
    probes = _evaluations(setup.method.localizer)
    # every image and every reference, where the detector is the mean of a map
    planned += _evaluations(SIGNALS[settings.detector].localizer) if settings.detector in SIGNALS else 0
    words = sum(len(set(prompt.split())) for prompt in setup.prompts) / len(setup.prompts)
    # the searched words are tried for a few steps
    # every reference gets a map
    evaluations = len(units) * planned + references * (planned + probes)
    flagged = probes + (round(planned + 2 * words) if settings.mitigate else 0)
    return Cost(
        images=len(units),
        references=references,
        evaluations=evaluations,
        flagged_evaluations=flagged,
        seconds=evaluations * seconds,
        flagged_seconds=flagged * seconds,
        # a flagged image has another one beside it
        bytes=len(units) * 2 * picture + (len(units) + references) * (_ROW + _PLACE * places) + _index_bytes(settings),
    )


def _evaluations(localizer: Localizer) -> int:
    """Of both branches, that a map takes."""
    probes = int(isinstance(localizer, BrightEnding))
    if isinstance(localizer, Collapse | Curvature | CurvatureDifference):
        probes = localizer.estimator.probes
    # but for the difference, products are with the Jacobian of one branch
    return probes if isinstance(localizer, CurvatureDifference) else math.ceil(probes / 2)


def _index_bytes(settings: Settings) -> int:
    """What an index of the training images takes, if one is to be made."""
    if settings.training_images is None:
        return 0
    check_folder(settings.training_images)
    files, _ = pictures_of(settings.training_images)
    descriptor = Tiles() if settings.sscd is None else SSCD(settings.sscd)
    return len(files) * (2 * math.prod(descriptor.shape) + 100)


def _measured(setup: Setup, size: int) -> tuple[int, float, int, int]:
    """Evaluations of a run, the seconds that one takes for one image, the bytes of a picture, the places of a map."""
    moments: list[float] = []

    def stop(_: float) -> None:
        moments.append(time.perf_counter())
        # the first one also warms up
        if len(moments) == 3:
            setup.pipe._interrupt = True

    prompts, seeds = zip(*setup.units[:size], strict=True)
    (batch,) = generate(setup.pipe, prompts, seeds, setup.sampling, batch_size=size, progress=stop)
    setup.pipe._interrupt = False
    taken = (moments[-1] - moments[0]) / max(1, min(len(moments), 3) - 1)
    latents = batch.trajectory.latents
    # a token of packed latents holds 2×2 places
    places = latents[0, 0].numel() if latents.dim() == 4 else 4 * latents.shape[1]
    return len(batch.trajectory.timesteps), taken / size, batch.images[0].numel(), places


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
