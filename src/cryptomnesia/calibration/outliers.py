"""Reference prompts that look memorized themselves.

A memorized prompt among the references makes a detector blind to others like it. To find such prompts, every reference
run is scored with other runs as references: the runs are split into `FOLDS` parts, and each part is compared with the
other parts. With the median m and the ninth decile d of a detector's scores, a score s lies z = 1.28 (s − m)/(d − m)
above the median. For normal scores that is the usual z-score, and a few memorized references hardly move m and d.

The scores of ordinary images have heavy tails, so that a single detector tells little. But several detectors rarely err
on the same image. The statistic of a reference is the mean of its `AGREEING` highest z, none of which counts more than
`MOST`. With fewer detectors it is the mean of asinh(z), which grows like a logarithm.

The statistics are brought to z in the same way, a normal tail gives p-values, and the procedure of Benjamini and
Hochberg says which are reported. What was found is taken out of the references, and the search repeated, until nothing
more is found. The levels were chosen, and false reports counted, on ordinary captions of the bundled model;
docs/how-to/calibrate.md has the rates.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import norm

from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.detectors.base import Detector, running_scores
from cryptomnesia.errors import CryptomnesiaError, UsageError
from cryptomnesia.registry import entries

if TYPE_CHECKING:
    from cryptomnesia.calibration.stored import Calibration

logger = logging.getLogger("cryptomnesia")

FOLDS = 5
"""Parts of the reference runs, each of which is scored with the others as references."""

AGREEING = 3
"""Detectors that have to agree on a reference, if there are as many."""

MOST = 4.0
"""The most that one of several detectors can contribute, so that none decides alone."""

LEVEL = 0.005
"""Level of the test of several detectors."""

LEVEL_ALONE = 0.02
"""Level of the test of fewer detectors than `AGREEING`, whose statistic has a lighter tail."""

_DECILE = float(norm.ppf(0.9))


@dataclass(frozen=True)
class Suspicious:
    """A reference prompt that looks memorized itself.

    Attributes:
        number: of the prompt, counted from 0, among all that the calibration was made from.
        p_value: about the chance that a reference that is not memorized stands out as much.
        scores: name of a detector → the score of the reference's image, with other references.
        usual: name of a detector → the median score of the references.
    """

    number: int
    p_value: float
    scores: Mapping[str, float]
    usual: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """What leaving references out changes at one false-positive rate.

    Attributes:
        fpr: the rate.
        before: smallest score that is flagged with all references; NaN if they are too few for the rate.
        after: smallest score that is flagged without those that are left out; NaN in the same case.
    """

    fpr: float
    before: float
    after: float


def suspicious(calibration: "Calibration", detectors: Sequence[Detector]) -> list[Suspicious]:
    """The references that stand out by several detectors together, the most remarkable first.

    Args:
        calibration: with the reference runs.
        detectors: one or more that the calibration can serve.
    """
    left_out: set[int] = set()
    while True:
        scores = {detector.name: _cross_scores(calibration, detector, left_out) for detector in detectors}
        kept = np.array([row not in left_out for row in range(len(calibration))])
        statistic, level = _together(np.array([_z_scores(values, kept) for values in scores.values()]))
        p_values = norm.sf(_z_scores(statistic, kept))
        found = _rejected(p_values, level) | left_out
        # half of the references are no exception; the search would only go on and on
        if found == left_out or len(found) > len(calibration) // 2:
            break
        left_out = found
    usual = {name: float(np.median(values[kept])) for name, values in scores.items()}
    return [
        Suspicious(
            calibration.numbers[row],
            float(p_values[row]),
            {name: float(values[row]) for name, values in scores.items()},
            usual,
        )
        for row in sorted(left_out, key=lambda row: p_values[row])
    ]


def served(calibration: "Calibration") -> Iterator[Detector]:
    """The registered detectors that read norms only and that a calibration can serve, one for every quantity.

    Nobody asked for them by name, so one that is not ready, or fails, is passed over. Those that agree have to be
    independent, so one that observes what another one is named after gives way to that one.
    """
    for name, entry in entries("detector").items():
        if entry.state != "ready":
            continue
        try:
            found = detector_of(name)
            if found.observes != name and found.observes in entries("detector"):
                continue
            if not found.signals and found.earliest(calibration.evaluations) <= calibration.evaluations:
                calibration.null(found)
                yield found
        except CryptomnesiaError as error:
            logger.debug("the detector %s does not judge the references: %s", name, error)
        # the code of another package may raise anything
        except Exception as error:
            logger.debug("the detector %s does not judge the references: it fails (%r)", name, error)


def changes(
    calibration: "Calibration", without: "Calibration", detector: Detector, rates: Sequence[float] = (0.01, 0.05)
) -> list[Change]:
    """What it changes for a detector that `without` has fewer references than `calibration`, rate by rate."""
    return [Change(rate, *(_threshold(made, detector, rate) for made in (calibration, without))) for rate in rates]


def _threshold(calibration: "Calibration", detector: Detector, rate: float) -> float:
    """The smallest score that is flagged at a rate, NaN if the references are too few for it."""
    try:
        return calibration.threshold(detector, rate)
    except UsageError:
        return float("nan")


def _cross_scores(calibration: "Calibration", detector: Detector, left_out: set[int]) -> np.ndarray:
    """The score of every reference run, (n,), with runs of the other parts as references that are not left out."""
    runs = calibration.runs
    order = torch.randperm(len(runs), generator=torch.Generator().manual_seed(0)).tolist()
    scores = np.empty(len(runs))
    for first in range(FOLDS):
        part = order[first::FOLDS]
        others = sorted(set(order) - set(part) - left_out)
        scores[part] = running_scores(detector, runs.rows(part), runs.rows(others))[:, -1].numpy()
    return scores


def _z_scores(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """How far values lie above the median of those that are kept, in units of the upper spread; 0 without spread."""
    middle, high = np.quantile(values[kept], [0.5, 0.9])
    spread = (high - middle) / _DECILE
    return (values - middle) / spread if spread > 0 else np.zeros_like(values)


def _together(z: np.ndarray) -> tuple[np.ndarray, float]:
    """The statistic of every reference (n,) from the z-scores of the detectors (d, n), and the level of its test."""
    if len(z) < AGREEING:
        return np.arcsinh(z).mean(axis=0), LEVEL_ALONE
    return np.sort(z.clip(max=MOST), axis=0)[-AGREEING:].mean(axis=0), LEVEL


def _rejected(p_values: np.ndarray, level: float) -> set[int]:
    """The numbers of the p-values that the procedure of Benjamini and Hochberg rejects."""
    order = np.argsort(p_values)
    below = np.flatnonzero(p_values[order] <= level * np.arange(1, len(order) + 1) / len(order))
    return set(order[: below[-1] + 1].tolist()) if len(below) else set()
