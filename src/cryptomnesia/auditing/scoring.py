"""From the signals that a run stored to scores, p-values and levels of evidence. Needs no model."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.auditing.evidence import Level
from cryptomnesia.auditing.examiner import trajectory_of
from cryptomnesia.auditing.options import Settings, same
from cryptomnesia.auditing.outcome import IMAGES, SCORES
from cryptomnesia.auditing.repetition import repeated
from cryptomnesia.auditing.store import Store
from cryptomnesia.calibration.scores import Calibration
from cryptomnesia.detectors import DETECTORS, SIGNALS
from cryptomnesia.errors import UsageError
from cryptomnesia.matching import Tiles, square


def score(store: Store, *, detector: str | None = None, rate: float | None = None) -> None:
    """Scores, p-values and level of evidence of every image of a run, from what it stored; replaces those there are.

    Args:
        store: of a run whose images are all done.
        detector: whose score is a suspicion, the run's own when None.
        rate: false-positive rate at which it is, likewise. What a match is stays as the run's own rate has it.

    Raises:
        UsageError: for a detector that the calibration does not know, whose map the run did not take or that says the
            same as the run's map, or a rate that the calibration cannot support.
    """
    settings = Settings(**store.about["settings"])
    detector, rate = detector or settings.detector, rate or settings.rate
    if said := same(detector, settings.map):
        raise UsageError(f"{said}; give another detector")
    calibration = Calibration.load(store.folder / "calibration.safetensors")
    calibration.threshold(detector, rate)
    rows = store.rows(IMAGES)
    seen = trajectory_of(rows)
    untaken = SIGNALS.keys() - seen.signals.keys()
    if detector in untaken:
        raise UsageError(f"the run took no maps for {detector}; judge by another detector, or audit with that one")
    scored: list[dict[str, Any]] = [{"prompt": row["prompt"], "seed": row["seed"]} for row in rows]
    for name in (each for each in calibration.null if each not in untaken):
        values = DETECTORS[name](calibration.reference).score(seen)
        values[~seen.norms.z.isfinite().all(dim=1)] = torch.nan
        for row, value, p in zip(scored, values.tolist(), calibration.p_value(name, values).tolist(), strict=True):
            row |= {f"{name}_score": value, f"{name}_p": p}
    masks = {number: torch.tensor(row["mask"]) for number, row in enumerate(rows) if row["mask"]}
    pictures = [_small(store.folder, row["image"]) for row in rows]
    again = repeated([row["prompt"] for row in rows], pictures, masks, rate=rate)
    for number, (row, own) in enumerate(zip(rows, scored, strict=True)):
        second = {
            "region": row["mean_p"] is not None and row["mean_p"] <= rate,
            "repeated": number in again,
        }
        matched = row["matched_whole"] or row["matched_region"]
        level = Level.of(own[f"{detector}_p"], rate, corroborated=any(second.values()), confirmed=matched)
        own |= {"detector": detector, "rate": rate, "level": level.name, **second}
    store.write(SCORES, 0, scored)


def _small(folder: Path, name: str) -> Tensor:
    """The middle square of a picture, as small as `repeated` needs it, so that those of a large run fit into memory."""
    path = folder / name
    # a run may come from elsewhere
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder} names the picture {name}, which is not its own; give a run that `audit` made")
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return square(file, Tiles().side)
    # Pillow's decoders raise whatever a broken file leads them to
    except Exception as error:
        raise UsageError(f"cannot read {path} ({error}); the run has lost pictures, make it anew") from None
