"""Make the pictures of a bench once, make them again under every mitigation, and judge what comes back.

Every picture of a memorized caption is made again, whether or not a detector flags it, so that mitigations are compared
on the same pictures. Of other captions those pictures are made again that the detector flags, as a guard would do. What
a guard would return follows from the verdicts, which are kept as well: the picture itself if it is not flagged, else
the one of the mitigation if that is not flagged, else none. A mitigation that corrects the user's own run (`own_run`)
always gives its picture, and one that blinds the detector (`blind`) is refused by a guard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cryptomnesia.bench.clip_score import ClipScore
from cryptomnesia.bench.detecting import Progress, alone, calibrated, made_with, settings_of
from cryptomnesia.bench.mitigation_figures import UNTOUCHED, figures_of
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.remaking import kept_pictures
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.calibration.fitting import check_references
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors import Detector
from cryptomnesia.errors import UsageError
from cryptomnesia.files import claim
from cryptomnesia.guarding.making import Maker
from cryptomnesia.mitigations import Mitigation
from cryptomnesia.pipelines.call import silent
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.tracing.generation import check_call, kept_prompts

PACKET = "mitigations.json.xz"
"""File with everything, when the bench is done."""


class Look(Protocol):
    """What is to be seen in pictures; a proving ground knows it."""

    def __call__(self, trials: Sequence[Trial], pictures: np.ndarray) -> list[dict[str, Any]]:
        """What is seen in every picture (B, H, W, 3) uint8, as JSON values.

        Returns:
            `pixels` and `structure`: whether it is a copy by either criterion, None for a caption with which nothing
            was planted; `distance` and `similarity`, by which that was decided; `recognized`: whether it shows all that
            its caption says; `shown`: which share of it; `confidence` of the classifier.
        """
        ...

    def frechet(self, pictures: np.ndarray) -> float:
        """How far the distribution of pictures (n, H, W, 3) uint8 is from the ground's own, NaN for too few."""
        ...

    def mask(self, trial: Trial, picture: np.ndarray) -> np.ndarray:
        """Where a picture (H, W, 3) uint8 of a memorized caption can be memorized, (H, W) bool."""
        ...


def bench_mitigations(
    setup: Setup,
    trials: Sequence[Trial],
    references: Sequence[str],
    mitigations: Sequence[Mitigation],
    detector: Detector,
    folder: Path,
    *,
    call: dict[str, Any],
    about: dict[str, Any],
    look: Look,
    clip: ClipScore | None = None,
    fpr: float = 0.01,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Packet:
    """Make the trials, those of memorized captions again under every mitigation, and write the packet to `folder`.

    Args:
        setup: the pipeline and the settings of its calls.
        trials: what is made.
        references: captions of the calibration, ordinary ones that are none of the trials.
        mitigations: that work in the set-up.
        detector: judges every picture.
        folder: made if missing. If it holds a bench of the same kind that was stopped, that one goes on; mitigations
            may be added to it.
        call: arguments of every call, with which `setup` was made.
        about: what else the pictures depend on, as JSON values.
        look: sees what is in pictures.
        clip: compares every picture with the caption of its trial, None for no comparison. A bench that goes on may be
            given another one.
        fpr: false-positive rate at which a picture is flagged.
        batch_size: images per call of the pipeline.
        progress: called while images are made.

    Raises:
        UsageError: if the folder holds another bench, another process works in it, the set-up refuses a method, or two
            mitigations have one name.
    """
    report = progress or (lambda *_: None)
    names = [made.name for made in mitigations]
    if len(set(names)) < len(names):
        raise UsageError(f"got the mitigations {', '.join(names)}; give every name once")
    setup.check([detector, *mitigations])
    check_call(setup)
    check_references(references, repeated=False, fpr=fpr)
    kept_prompts(setup, [trial.prompt for trial in trials], "truncate")
    settings = {
        **settings_of(setup, about, references, trials, batch_size=batch_size, threshold=0.0),
        "detector": detector.describe(),
        "fpr": fpr,
    }
    claim(folder / "bench.json", settings, "a bench with other settings")
    localizers = {found.name: found for made in mitigations for found in made.maps(setup)}
    with alone(folder), silent(setup.pipe):
        calibration = calibrated(
            setup,
            references,
            folder,
            call=call,
            batch_size=batch_size,
            report=report,
            detectors=[detector],
            localizers=list(localizers.values()),
        )
        calibration.check_localizers(list(localizers.values()))
        maker = Maker(setup.pipe, Judge(calibration, detector, fpr), batch=batch_size)
        plain = kept_pictures(maker, None, setup, trials, folder, batch_size, report)
        positive = [row for row, trial in enumerate(trials) if trial.group == MEMORIZED]
        others = [row for row, trial in enumerate(trials) if trial.group != MEMORIZED]
        made: dict[str, dict[int, dict[str, Any]]] = {}
        for mitigation in mitigations:
            telling = Maker(
                setup.pipe,
                Judge(calibration, detector, fpr),
                alters=mitigation.alters,
                batch=batch_size,
            )
            # what corrects the user's own call can also change pictures that nobody flags
            corrects = mitigation.correction(calibration.references) is not None
            parts = [(folder, [*positive, *others])]
            if not corrects:
                (folder / "others").mkdir(exist_ok=True)
                parts = [(folder, positive), (folder / "others", [row for row in others if plain[row]["flagged"]])]
            for place, rows in parts:
                chosen = [trials[row] for row in rows]
                # of few pictures it is known what each of them takes
                size = batch_size if place is folder else 1
                found = kept_pictures(telling, mitigation, setup, chosen, place, size, report)
                made.setdefault(mitigation.name, {}).update(zip(rows, found, strict=True))
                for one in found:
                    one |= {"own_run": corrects, "blind": mitigation.blinds(detector)}
        packet = _packet(setup, trials, plain, made, mitigations, made_with(settings, references), look, clip)
        packet.save(folder / PACKET)
        return packet


def _packet(
    setup: Setup,
    trials: Sequence[Trial],
    plain: Sequence[dict[str, Any]],
    made: Mapping[str, Mapping[int, dict[str, Any]]],
    mitigations: Sequence[Mitigation],
    about: dict[str, Any],
    look: Look,
    clip: ClipScore | None,
) -> Packet:
    """What is seen in all pictures, and the figures."""
    rows: list[dict[str, Any]] = [{**asdict(trial), "pictures": {}} for trial in trials]
    frechet: dict[str, dict[str, float]] = {}
    everything: dict[str, Mapping[int, dict[str, Any]]] = {UNTOUCHED: dict(enumerate(plain)), **made}
    for name, made_under in everything.items():
        # where no picture was made nothing is to be seen
        found = {row: {**one, "picture": _picture(one, plain[row])} for row, one in made_under.items()}
        seen = look([trials[row] for row in found], np.stack([one["picture"] for one in found.values()]))
        for (row, one), sight in zip(found.items(), seen, strict=True):
            before, after = (picture.astype(np.float64) / 255 for picture in (plain[row]["picture"], one["picture"]))
            change = np.sqrt(((after - before) ** 2).mean(axis=-1))
            inside = look.mask(trials[row], plain[row]["picture"]) if trials[row].group == MEMORIZED else None
            rows[row]["pictures"][name] = {
                "own_run": False,
                "blind": False,
                **{key: value for key, value in one.items() if key != "picture"},
                **sight,
                "change": float(change.mean()) if one["made"] else None,
                "change_inside": _mean(change, inside) if one["made"] else None,
                "change_outside": _mean(change, None if inside is None else ~inside) if one["made"] else None,
            }
        for group in dict.fromkeys(trials[row].group for row in found):
            pictures = [one["picture"] for row, one in found.items() if trials[row].group == group and one["made"]]
            frechet.setdefault(name, {})[group] = look.frechet(np.stack(pictures)) if pictures else float("nan")
        _spread(rows, found, name)
        if clip is not None:
            _compare(clip, rows, found, name)
    methods = {made.name: {"describe": made.describe(), "cost": made.cost(setup)} for made in mitigations}
    about = {**about, "bench": "mitigate", "frechet": frechet}
    if clip is not None:
        about["clip"] = clip.weights
    return Packet(about, methods, rows, figures_of(rows, [UNTOUCHED, *methods]))


def _mean(values: np.ndarray, mask: np.ndarray | None) -> float | None:
    """The mean of values (H, W) inside a mask, None if there is none or it is empty."""
    return None if mask is None or not mask.any() else float(values[mask].mean())


def _picture(one: dict[str, Any], plain: dict[str, Any]) -> np.ndarray:
    """The picture that was made, or a black one of the same size."""
    return one["picture"] if one["made"] else np.zeros_like(plain["picture"])


def _spread(rows: list[dict[str, Any]], found: Mapping[int, dict[str, Any]], name: str) -> None:
    """Add to every row how far its picture is from the others of its cluster, in the mean."""
    clusters: dict[str, list[int]] = {}
    for row, one in found.items():
        if one["made"]:
            clusters.setdefault(rows[row]["cluster"], []).append(row)
    for members in clusters.values():
        pictures = np.stack([found[row]["picture"] for row in members]).astype(np.float64) / 255
        for row, picture in zip(members, pictures, strict=True):
            distances = np.sqrt(((pictures - picture) ** 2).mean(axis=(1, 2, 3)))
            rows[row]["pictures"][name]["apart"] = (
                float(distances.sum() / (len(members) - 1)) if len(members) > 1 else None
            )


def _compare(clip: ClipScore, rows: list[dict[str, Any]], found: Mapping[int, dict[str, Any]], name: str) -> None:
    """Add to every row how well its picture fits the user's own caption, None if no picture was made."""
    scores = clip([rows[row]["prompt"] for row in found], np.stack([one["picture"] for one in found.values()]))
    for (row, one), score in zip(found.items(), scores, strict=True):
        rows[row]["pictures"][name]["clip"] = score if one["made"] else None
