"""From what a run stored to verdicts and levels of evidence. Needs no model."""

import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.auditing.checking import check_about, check_rows
from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.outcome import IMAGES, SCORES, not_installed, units_of
from cryptomnesia.auditing.repetition import repeated
from cryptomnesia.auditing.rows import P_VALUE, SCORE, verdict_columns, verdict_of
from cryptomnesia.auditing.store import CALIBRATION, READERS, Store
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.detectors import Detector, detector_names
from cryptomnesia.detectors import detector as detector_of
from cryptomnesia.errors import CryptomnesiaError, UsageError
from cryptomnesia.images import square
from cryptomnesia.matching import Tiles
from cryptomnesia.pipelines.fingerprint import differences
from cryptomnesia.places import patiently
from cryptomnesia.registry import entries
from cryptomnesia.settings import AuditSettings
from cryptomnesia.statistics import conformal_p_values, conformal_threshold, discovery_rate
from cryptomnesia.tracing.columns import trajectory_of
from cryptomnesia.tracing.trajectory import Trajectory
from cryptomnesia.verdicts import Verdict

logger = logging.getLogger("cryptomnesia")


@dataclass(frozen=True)
class Stored:
    """What a run stored of its images.

    Attributes:
        store: the run.
        settings: of the run.
        calibration: that the run is judged by.
        rows: of all images.
        runs: norms and signals of all images.
        verdicts: on all images, as the run itself judged them.
    """

    store: Store
    settings: AuditSettings
    calibration: Calibration
    rows: list[dict[str, Any]]
    runs: Trajectory
    verdicts: list[Verdict]

    @classmethod
    def of(cls, store: Store) -> "Stored":
        """Read the images of a run."""
        check_about(store.about, store.folder)
        rows = store.rows(IMAGES)
        settings = AuditSettings.resolve(store.about["settings"], environment={})
        check_rows(rows, IMAGES, units_of(store.about["prompts"], settings), store.folder)
        return cls(
            store,
            settings,
            calibration_in(store),
            rows,
            trajectory_of(rows),
            [verdict_of(row, number) for number, row in enumerate(rows)],
        )

    def is_own(self, detector: str | Any | None) -> bool:
        """Whether a detector, given by name or as an object, is the one by which the run was judged; None is."""
        about = self.store.about
        if detector is None or isinstance(detector, str):
            return detector in (None, about["methods"]["detector"])
        return detector_of(detector).describe() == about["made_by"]["detector"]

    def judged_as_before(self, fpr: float) -> list[Verdict]:
        """The verdicts of the run's own detector at another false-positive rate, from the scores that are stored.

        Raises:
            UsageError: for a rate that the calibration does not support.
        """
        # this depends only on the number of references
        conformal_threshold(torch.zeros(len(self.calibration.others)), fpr)
        if fpr == self.settings.fpr:
            return self.verdicts
        found, _ = installed(self.store.about["methods"]["detector"], self.store.about["made_by"]["detector"])
        if found is not None:
            return self.judged_by(found, fpr)
        return [_at_rate(verdict, fpr) for verdict in self.verdicts]

    def judged_by(self, detector: Detector, fpr: float) -> list[Verdict]:
        """The verdicts of a detector that reads what is stored.

        Raises:
            UsageError: if the run or its calibration lacks what the detector reads, or the calibration does not support
                the rate.
        """
        if lacking := self._lacking(detector):
            raise UsageError(
                f"the run stored no {', '.join(lacking)}, which {detector.name} reads; audit again with "
                f"--detector {detector.name}: {self._cost()}"
            )
        found = Judge(self.calibration, detector, fpr)(self.runs, [row["prompt"] for row in self.rows])
        # what was done about an image stays as it was
        return [_with_action(verdict, before) for verdict, before in zip(found, self.verdicts, strict=True)]

    def scores(self) -> Iterator[tuple[str, list[float], list[float]]]:
        """Name, scores and p-values of the run's own detector, and of all others that can be computed.

        Nobody asked for the others, so a detector of another package is passed over if it is not ready or fails.
        """
        used = self.store.about["methods"]["detector"]
        yield used, [verdict.score for verdict in self.verdicts], [verdict.p_value for verdict in self.verdicts]
        for name in detector_names():
            # a map that the run did not compute need not be loaded for that
            if name == used or (name not in entries("detector") and name not in self.runs.signals):
                continue
            try:
                if reason := not_installed("detector", name):
                    logger.info("no scores of the detector %s: %s", name, reason)
                elif (scored := self._scored(detector_of(name))) is not None:
                    yield name, *scored
            except CryptomnesiaError as error:
                # it does not fit the run, for instance because the runs have no unconditional branch
                logger.info("no scores of the detector %s: %s", name, error)
            # the code of another package may raise anything, and may try to end Python
            except (Exception, SystemExit) as error:
                logger.info("no scores of the detector %s: it fails (%s: %s)", name, type(error).__name__, error)

    def _scored(self, detector: Detector) -> tuple[list[float], list[float]] | None:
        """Scores and p-values of a detector, None if it reads what is not stored or needs more evaluations."""
        evaluations = self.calibration.evaluations
        if self._lacking(detector) or detector.earliest(evaluations) > evaluations:
            return None
        null = self.calibration.null(detector)[:, -1]
        scores = detector.running(self.runs, self.calibration.references)
        if scores.shape != (len(self.rows), evaluations):
            raise UsageError(f"its scores have the shape {tuple(scores.shape)}, not {(len(self.rows), evaluations)}")
        last = scores[:, -1].masked_fill(~self.runs.norms["z"].isfinite().all(dim=1), torch.nan)
        return last.tolist(), conformal_p_values(last, null).tolist()

    def _lacking(self, detector: Detector) -> list[str]:
        """The norms and signals that a detector reads and the run did not store."""
        return sorted(detector.reads - self.runs.norms.keys() - self.runs.signals.keys())

    def _cost(self) -> str:
        """What it takes to generate the run again."""
        references = 0 if self.store.about["references"] is None else len(self.store.about["references"])
        made = f"{references} references and {len(self.rows)} images" if references else f"{len(self.rows)} images"
        need = "" if references else ", with a calibration that was made with this detector"
        return f"{made} × {self.calibration.evaluations} evaluations, and what the detector itself evaluates{need}"


def calibration_in(store: Store) -> Calibration:
    """The calibration that a run is judged by.

    Raises:
        UsageError: if it is missing, damaged, or that of another set-up.
    """
    calibration = Calibration.load(store.folder / CALIBRATION)
    if unlike := differences(calibration.fingerprint, store.about["fingerprint"]):
        raise UsageError(
            f"{store.folder / CALIBRATION} is not the calibration of the run: {'; '.join(unlike)}; put the run's own "
            "back, or audit again"
        )
    return calibration


def score(
    store: Store, *, detector: str | Any | None = None, fpr: float | None = None, fdr: float | None = None
) -> None:
    """Judge every image of a run from what it stored; replaces the verdicts and levels of evidence that are there.

    Args:
        store: of a run whose images are all done.
        detector: name or object of the detector by whose score images are suspected, the run's own when None.
        fpr: false-positive rate at which they are, the run's own when None. What counts as a match with a training
            image stays as the run decided it.
        fdr: false-discovery rate of the prompts that are suspected, the run's own when None. It makes the rate at which
            images are suspected as much smaller than `fpr` as is needed.

    Raises:
        UsageError: for a detector that reads what the run did not store or that observes the same as the run's map, or
            a rate that the calibration cannot support.
    """
    stored = Stored.of(store)
    about = store.about
    fpr = stored.settings.fpr if fpr is None else fpr
    fdr = stored.settings.fdr if fdr is None else fdr
    if stored.is_own(detector):
        name, made_by = about["methods"]["detector"], about["made_by"]["detector"]
        verdicts = stored.judged_as_before(fpr)
    else:
        chosen = detector_of(detector)
        check_second_signal(chosen.name, chosen.observes, about["methods"]["localizer"], about["observes"]["localizer"])
        name, made_by = chosen.name, chosen.describe()
        verdicts = stored.judged_by(chosen, fpr)
    rate = fpr
    if fdr is not None:
        images = stored.settings.images_per_prompt
        most = discovery_rate(_per_prompt(stored.rows, verdicts, images), fdr, fpr=min(1.0, images * fpr))
        # p-values are fractions, so rounding must not decide
        rate = max([most / images, *(v.p_value for v in verdicts if min(1.0, images * v.p_value) <= most)])
        verdicts = [_at_rate(verdict, rate) for verdict in verdicts]
    masks = {number: torch.tensor(row["mask"]) for number, row in enumerate(stored.rows) if row["mask"] is not None}
    with ThreadPoolExecutor(READERS) as pool:
        pictures = list(pool.map(partial(_small, store.folder), [row["image"] for row in stored.rows]))
    again = repeated([row["prompt"] for row in stored.rows], pictures, masks, fpr=fpr)
    scored: list[dict[str, Any]] = []
    for number, (row, verdict) in enumerate(zip(stored.rows, verdicts, strict=True)):
        second = {
            "region": row["mean_p"] is not None and row["mean_p"] <= fpr,
            "repeated": number in again,
        }
        matched = row["matched_whole"] or row["matched_region"]
        level = Level.of(verdict.p_value, rate, corroborated=any(second.values()), confirmed=matched)
        scored.append(
            {
                "prompt": row["prompt"],
                "seed": row["seed"],
                **verdict_columns(verdict),
                "detector": name,
                "made_by": made_by,
                "level": level.name,
                "fdr": fdr,
                "fpr_given": fpr,
                **second,
            }
        )
    for other, scores, p_values in stored.scores():
        for row, value, p_value in zip(scored, scores, p_values, strict=True):
            row |= {f"{SCORE}{other}": value, f"{P_VALUE}{other}": p_value}
    store.write(SCORES, 0, scored)


def _per_prompt(rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict], images: int) -> list[float]:
    """The p-value of every prompt with `images` images: the smallest of them, times their number (Bonferroni)."""
    smallest: dict[str, float] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        # NaN is never the smaller one
        smallest[row["prompt"]] = min(verdict.p_value, smallest.get(row["prompt"], math.inf))
    return [math.nan if math.isinf(p) else min(1.0, images * p) for p in smallest.values()]


def check_second_signal(detector: str, observes: str, localizer: str | None, localizer_observes: str | None) -> None:
    """Refuse a map that says the same as the detector and so could not corroborate it.

    Args:
        detector: its name.
        observes: what it observes.
        localizer: name of the localizer, None without maps.
        localizer_observes: what the localizer observes.

    Raises:
        UsageError: naming both.
    """
    if localizer is not None and (observes == localizer_observes or detector == localizer):
        raise UsageError(
            f"the detector {detector} says the same as the map {localizer}, because both are made from "
            f"{localizer_observes}, so the map is no second signal; give another detector or localizer"
        )


def installed(name: str, made_by: str) -> tuple[Detector | None, str]:
    """The detector of a stored run, or None and why this installation cannot make the same one.

    Args:
        name: under which it is registered.
        made_by: everything that changes its score, in words.
    """
    if reason := not_installed("detector", name):
        return None, reason
    found = detector_of(name)
    if found.describe() != made_by:
        return None, f"the detector {name} of this installation is {found.describe()}, that of the run was {made_by}"
    return found, ""


def _at_rate(verdict: Verdict, fpr: float) -> Verdict:
    """A verdict at another rate, without the step at which the score first reached the new threshold."""
    if math.isnan(verdict.p_value):
        return replace(verdict, fpr=fpr)
    flagged = verdict.p_value <= fpr
    reason = f"{verdict.detector} {verdict.score:.3g} has p = {verdict.p_value:.3g} {'≤' if flagged else '>'} {fpr:g}"
    judged = replace(verdict, fpr=fpr, flagged=flagged, first_flagged_step=None, reason=reason)
    return _with_action(judged, verdict)


def _with_action(verdict: Verdict, before: Verdict) -> Verdict:
    """A new verdict on an image with what the run did about it."""
    if before.action == "none":
        return verdict
    return replace(
        verdict,
        severity=before.severity,
        corrected=before.corrected,
        dropped=before.dropped,
        retried=before.retried,
        action=before.action,
        reason=f"{verdict.reason}; in the run: {before.reason}",
    )


def _small(folder: Path, name: str) -> Tensor:
    """The middle square of a picture, as small as `repeated` needs it, so that those of a large run fit into memory."""
    path = folder / name
    # a run may come from elsewhere
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder} names the picture {name}, which is not its own; give a run that `audit` made")
    try:
        with Image.open(BytesIO(patiently(path, path.read_bytes)), formats=["PNG"]) as file:
            return square(file, Tiles().side)
    # Pillow's decoders raise whatever a broken file leads them to
    except Exception as error:
        raise UsageError(f"cannot read {path} ({error}); the run has lost pictures, so audit again") from None
