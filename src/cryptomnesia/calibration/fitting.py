"""The verb `calibrate`: generate images of ordinary captions, and keep what was recorded of their runs."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptomnesia.calibration.recording import Recording
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import detectors_of
from cryptomnesia.errors import UsageError
from cryptomnesia.localizers import localizers_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Long
from cryptomnesia.statistics import check_rate, needed_references, null_size
from cryptomnesia.tracing.generation import (
    Progress,
    captions_of,
    check_call,
    kept_prompts,
    real_number,
    whole_number,
)

logger = logging.getLogger("cryptomnesia")

FIRST_SEED = 1_000_000
"""Seed of the first reference image, far from the seeds that users usually choose."""

FEWEST = 100
"""Smallest number of reference prompts; two thirds of them give the null."""

DEFAULT_FPR = 0.01
"""False-positive rate of `detect`, `guard` and `audit` unless another is given."""


def calibrate(
    pipe: Any,
    prompts: Sequence[str] | str | Path,
    *,
    detectors: str | Any | Sequence[str | Any] = (),
    localizers: str | Any | Sequence[str | Any] = (),
    checkpoint: Any = None,
    fpr: float | None = None,
    seed: int = FIRST_SEED,
    long: Long = "truncate",
    batch_size: int = 8,
    progress: Progress | None = None,
    **call: Any,
) -> Calibration:
    """Record what a set-up does with ordinary captions: generate one image of each caption.

    The calibration then serves all detectors that read only norms that are always recorded, also detectors that are
    installed later. Reference prompts that look memorized themselves are named in a warning, and stay: see
    `Calibration.suspicious` and `Calibration.without`.

    Args:
        pipe: a pipeline of a known family.
        prompts: at least 100 different captions, or a file of them. They should be like the captions that will be
            judged, and none of them memorized. n captions leave a null of n - ⌊n/3⌋ scores, so that no p-value is below
            1/(n - ⌊n/3⌋ + 1): 150 support a false-positive rate of 1%. For a model without captions only their number
            matters.
        detectors: one or several detectors that need further norms or signals, for instance `settled-detail`, as names
            or objects.
        localizers: one or several localizers whose maps are to become masks, as names or objects; `auto` is the default
            of the pipeline's family.
        checkpoint: a pipeline around a less-trained checkpoint, for localizers that are compared with one; for the
            detector `base-difference` the base of a fine-tune.
        fpr: a false-positive rate that the calibration has to support. Unless given, a warning says so if it does not
            support `DEFAULT_FPR`.
        seed: image i has the seed `seed` + i. Choose it far from the seeds of the images that will be judged.
        long: what is done about prompts that are longer than the text encoders read: `truncate` cuts them off, as
            diffusers does it, `skip` leaves them out, and `error` refuses them. A warning says how many there are.
        batch_size: images per call of the pipeline.
        progress: called after every evaluation with the number of images done.
        **call: arguments of every call, named as the pipeline names them; the pipeline's defaults for the others.

    Raises:
        UsageError: for prompts that are too few or repeated, methods that are unknown or cannot work, arguments that
            the pipeline does not take, or a model whose output is not finite.
    """
    captions = captions_of(Path(prompts) if isinstance(prompts, str) else prompts)
    recording = recorded_by(
        Setup.of(pipe, call, checkpoint),
        captions,
        detectors=detectors,
        localizers=localizers,
        fpr=fpr,
        seed=seed,
        long=long,
        batch_size=batch_size,
    )
    rows: list[dict[str, Any]] = []
    for number in range(recording.batches):
        before = len(rows)
        tell = None if progress is None else lambda done, before=before: progress(before + done)
        rows += recording.batch(number, tell)
    calibration = recording.calibration(rows)
    warn_of_references(calibration)
    return calibration


def recorded_by(
    setup: Setup,
    captions: Sequence[str],
    *,
    detectors: str | Any | Sequence[str | Any],
    localizers: str | Any | Sequence[str | Any],
    fpr: float | None,
    seed: int,
    long: Long,
    batch_size: int,
) -> Recording:
    """What `calibrate` records, arguments as there; everything is checked and nothing generated.

    Raises:
        UsageError: as `calibrate`.
    """
    seed = whole_number("seed", seed)
    if seed < 0:
        raise UsageError(f"got the seed {seed}; give 0 or more")
    conditional = setup.family.conditional
    captions = kept_prompts(setup, captions, long)
    check_references(captions, repeated=not conditional, fpr=None if fpr is None else real_number("fpr", fpr))
    judges = detectors_of(detectors, setup)
    mappers = localizers_of(localizers, setup) if localizers else []
    setup.check(judges)
    check_call(setup)
    if fpr is None and len(captions) < needed_references(DEFAULT_FPR):
        logger.warning("%s", in_words(len(captions)))
    batch_size = whole_number("batch_size", batch_size)
    if batch_size < 1:
        raise UsageError(f"got a batch size of {batch_size}; give at least 1")
    return Recording(setup, captions, judges, mappers, seed, batch_size)


def warn_of_references(calibration: Calibration) -> None:
    """Log a warning that names the reference prompts that look memorized, or repeat the words of another."""
    if again := calibration.captions.duplicates:
        logger.warning(
            "reference prompts with the words of an earlier one, so that their images are not independent: %s (counted "
            "from 0); give every prompt once",
            ", ".join(str(calibration.numbers[row]) for row in again),
        )
    if found := calibration.suspicious():
        logger.warning(
            "reference prompts that look memorized themselves: %s (counted from 0); see `Calibration.suspicious`, and "
            "leave them out by `Calibration.without` or take others in their place",
            ", ".join(str(row.number) for row in found),
        )


def in_words(count: int) -> str:
    """What a number of reference prompts supports, in a sentence, with the number that `DEFAULT_FPR` needs."""
    null = null_size(count)
    return (
        f"{count} reference prompts leave {null} for the null, so no p-value is below 1/{null + 1} = "
        f"{1 / (null + 1):.3g}; the default false-positive rate of {DEFAULT_FPR:g} needs "
        f"{needed_references(DEFAULT_FPR)} reference prompts"
    )


def check_references(prompts: Sequence[str], *, repeated: bool = False, fpr: float | None = None) -> None:
    """Refuse reference prompts that are too few or, because their images are not independent, repeated.

    Args:
        prompts: captions of the reference images.
        repeated: whether a caption may be there more than once.
        fpr: a false-positive rate that the references have to support.

    Raises:
        UsageError: saying how many there are and how many are needed.
    """
    if len(prompts) < FEWEST:
        raise UsageError(f"got {len(prompts)} reference prompts; give at least {FEWEST} (150 for a rate of 1%)")
    again = len(prompts) - len(set(prompts))
    if again and not repeated:
        raise UsageError(f"{again} of {len(prompts)} reference prompts are repeated; give every prompt once")
    if fpr is None:
        return
    check_rate(fpr)
    if len(prompts) < (need := needed_references(fpr)):
        null = null_size(len(prompts))
        raise UsageError(
            f"{len(prompts)} reference prompts leave {null} for the null, so no p-value is below {1 / (null + 1):.3g}; "
            f"a rate of {fpr:g} needs {need} reference prompts, or give a higher rate"
        )
