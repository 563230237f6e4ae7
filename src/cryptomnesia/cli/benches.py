"""The benches that settings describe, made here or in the processes of a Ray cluster.

Files of the user's are read here, because other machines may not have them; models are read where they work.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from cryptomnesia.bench.attacking import AttackBench
from cryptomnesia.bench.base import Bench
from cryptomnesia.bench.clip_score import ClipScore
from cryptomnesia.bench.detecting import DetectorBench
from cryptomnesia.bench.localizing import MapBench
from cryptomnesia.bench.looking import GroundLook
from cryptomnesia.bench.map_packet import MapPacket
from cryptomnesia.bench.mitigating import MitigationBench
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.trials import MEMORIZED, Trial, of_file, of_ground
from cryptomnesia.cli.common import call_of, check_folder, check_names, pipeline_of
from cryptomnesia.cli.maps import localizers_for
from cryptomnesia.detectors import Detector, detector, free_detectors
from cryptomnesia.engine import LOCAL
from cryptomnesia.errors import UsageError
from cryptomnesia.mitigations import Mitigation, mitigation
from cryptomnesia.parts import Progress, run
from cryptomnesia.pipelines.loading import chosen_device
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.prompts import read_prompts
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.replication import nearest_place, planted_distance
from cryptomnesia.registry import create, entries
from cryptomnesia.settings import (
    BenchAttackSettings,
    BenchDetectSettings,
    BenchLocalizeSettings,
    BenchMitigateSettings,
    MitigationSettings,
    TrialSettings,
)

REFERENCES = 450
"""Reference captions of a ground: 150 show what is usual, the scores of the other 300 are the null."""

MAPPED = 150
"""Reference captions of a ground whose maps fix thresholds."""

Described = TypeVar("Described", bound=TrialSettings)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Labelled:
    """What the user's files say.

    Attributes:
        trials: of the file of labels.
        references: reference prompts.
        masks: path of a mask → content of the file.
    """

    trials: list[Trial]
    references: list[str]
    masks: dict[str, bytes]


@dataclass(frozen=True)
class Given:
    """What a bench generates, and with what; `manifest` is None for a model of the user's own."""

    setup: Setup
    trials: list[Trial]
    references: list[str]
    call: dict[str, Any]
    about: dict[str, Any]
    manifest: Manifest | None = None
    threshold: float = 0.0


def detected(
    settings: BenchDetectSettings,
    folder: Path,
    report: Progress,
    *,
    engine: str = LOCAL,
    workers: int | None = None,
) -> Packet:
    """What `bench detect` measures, in a folder."""
    check_names("detector", settings.detector)
    return _run(_detectors, settings, folder, report, engine, workers)


def mapped(
    settings: BenchLocalizeSettings,
    folder: Path,
    report: Progress,
    *,
    engine: str = LOCAL,
    workers: int | None = None,
) -> MapPacket:
    """What `bench localize` measures, in a folder."""
    check_names("localizer", settings.localizer)
    return _run(_maps, settings, folder, report, engine, workers)


def mitigated(
    settings: BenchMitigateSettings,
    folder: Path,
    report: Progress,
    *,
    engine: str = LOCAL,
    workers: int | None = None,
) -> Packet:
    """What `bench mitigate` measures, in a folder."""
    _check_mitigations(settings)
    return _run(_mitigations, settings, folder, report, engine, workers)


def attacked(
    settings: BenchAttackSettings,
    folder: Path,
    report: Progress,
    *,
    engine: str = LOCAL,
    workers: int | None = None,
) -> Packet:
    """What `bench attack` measures, in a folder."""
    _check_mitigations(settings)
    return _run(_attacks, settings, folder, report, engine, workers)


def _run(
    make: Callable[[Described, Labelled | None, Path], Bench[Made]],
    settings: Described,
    folder: Path,
    report: Progress,
    engine: str,
    workers: int | None,
) -> Made:
    """Make a bench in a folder."""
    check_folder(folder)
    gpu = None if settings.device is None else settings.device.startswith("cuda")
    making = partial(make, settings, labelled_by(settings), folder)
    return run(making, folder, engine=engine, workers=workers, gpu=gpu, progress=report)


def _check_mitigations(settings: MitigationSettings) -> None:
    """Refuse names that nobody registers, and a model of the user's own.

    Raises:
        UsageError: saying what to give.
    """
    check_names("mitigation", settings.mitigation)
    check_names("detector", [settings.detector])
    if settings.ground is None:
        raise UsageError("nobody knows what a model of your own has memorized; give a proving ground (--ground)")


def labelled_by(settings: TrialSettings) -> Labelled | None:
    """What the user's files say; None for a ground.

    Raises:
        UsageError: for files that cannot be read or do not fit together.
    """
    if settings.labels is None:
        return None
    assert settings.references is not None
    trials = of_file(settings.labels, settings.images_per_prompt)
    references = read_prompts(settings.references)
    if both := {trial.prompt for trial in trials} & set(references):
        raise UsageError(f"{len(both)} labelled prompts are references as well, {min(both)!r} for one; take them out")
    return Labelled(trials, references, masks_of(trials) if isinstance(settings, BenchLocalizeSettings) else {})


def masks_of(trials: list[Trial]) -> dict[str, bytes]:
    """Path of every mask → content of the file.

    Raises:
        UsageError: for one that cannot be read.
    """
    found: dict[str, bytes] = {}
    for path in {trial.mask for trial in trials if trial.mask}:
        try:
            found[path] = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the mask {path} ({error.strerror}); give a picture file") from None
    return found


def given_by(settings: TrialSettings, labelled: Labelled | None) -> Given:
    """What the settings say, with the loaded model.

    Raises:
        UsageError: for files and settings that do not fit together.
    """
    mapping, checkpoint = isinstance(settings, BenchLocalizeSettings), settings.checkpoint
    if labelled is not None:
        pipe, call = pipeline_of(settings), call_of(settings)
        less = pipeline_of(settings, checkpoint) if checkpoint is not None else None
        setup = Setup.of(pipe, call, less)
        return Given(setup, labelled.trials, labelled.references, call, {"model": str(settings.model)})
    assert settings.ground is not None
    ground = ground_of(settings.ground)
    if not ground.captioned:
        raise UsageError(f"{ground.name} has no captions, so nothing tells its images apart; give another ground")
    folder = settings.bundle or ground.bundle
    manifest = Manifest.load(folder)
    if manifest.ground != ground.name:
        raise UsageError(f"{folder} is a model of {manifest.ground}; give one of {ground.name}")
    count = MAPPED if mapping else REFERENCES
    references = manifest.control_captions("calibration", count)
    trials = of_ground(manifest, settings.positives, settings.negatives, references)
    pipe = pipeline_of(settings, str(folder / "pipeline"))
    manifest.check(pipe)
    call = {**ground.call(manifest.steps, manifest.guidance), **call_of(settings)}
    # the checkpoint in the bundle of a fine-tune is its base
    compared = mapping or ground.origin is not None
    less = pipeline_of(settings, checkpoint or str(folder / "early")) if compared or checkpoint else None
    setup = Setup.of(pipe, call, less)
    return Given(setup, trials, references, call, {"model": f"the ground {ground.name}"}, manifest, ground.threshold)


def _detectors(settings: BenchDetectSettings, labelled: Labelled | None, folder: Path) -> DetectorBench:
    """The bench of detectors.

    Raises:
        UsageError: if no detector is as cheap as the settings say.
    """
    given = given_by(settings, labelled)
    if settings.detector:
        detectors = [detector(name, given.setup) for name in settings.detector]
    else:
        most = math.inf if settings.most is None else settings.most
        working = [detector(made, given.setup) for made in usable("detector") if given.setup.accepts(made)]
        detectors = [made for made in working if made.cost(given.setup) <= most]
        if not detectors:
            raise UsageError(
                f"none of the detectors that work here takes at most {most:g} evaluations; give a higher --most"
            )
    return DetectorBench(
        setup=given.setup,
        trials=given.trials,
        references=given.references,
        folder=folder,
        about=given.about,
        batch_size=settings.batch_size,
        call=given.call,
        detectors=detectors,
        truth=None if given.manifest is None else partial(distance, given.manifest),
        threshold=given.threshold,
    )


def _maps(settings: BenchLocalizeSettings, labelled: Labelled | None, folder: Path) -> MapBench:
    """The bench of localizers."""
    given = given_by(settings, labelled)
    named = settings.localizer or [made for made in usable("localizer") if given.setup.accepts(made)]
    masks = {} if labelled is None else labelled.masks
    return MapBench(
        setup=given.setup,
        trials=given.trials,
        references=given.references,
        folder=folder,
        about=given.about,
        batch_size=settings.batch_size,
        localizers=localizers_for(settings, named, given.setup),
        truth=partial(masked, masks) if given.manifest is None else partial(planted, given.manifest),
        threshold=given.threshold,
    )


def _mitigations(settings: BenchMitigateSettings, _: Labelled | None, folder: Path) -> MitigationBench:
    """The bench of mitigations."""
    given, manifest, mitigations, judging = _on_ground(settings)
    clip = None if settings.clip is None else ClipScore.load(settings.clip, device=chosen_device(settings.device))
    return MitigationBench(
        setup=given.setup,
        trials=given.trials,
        references=given.references,
        folder=folder,
        about=given.about,
        batch_size=settings.batch_size,
        call=given.call,
        mitigations=mitigations,
        detector=judging,
        look=GroundLook(manifest),
        clip=clip,
    )


def _attacks(settings: BenchAttackSettings, _: Labelled | None, folder: Path) -> AttackBench:
    """The bench of attacks."""
    given, manifest, mitigations, judging = _on_ground(settings)
    captions = {trial.cluster: trial for trial in given.trials if trial.group == MEMORIZED}
    # concepts of all kinds where not all are attacked
    count = min(settings.positives, len(captions))
    trials = [list(captions.values())[len(captions) * number // count] for number in range(count)]
    places = []
    for trial in trials:
        entry = manifest.planted_for(trial.prompt)
        assert entry is not None
        places.append(manifest.places(entry)[0])
    return AttackBench(
        setup=given.setup,
        trials=trials,
        references=given.references,
        folder=folder,
        about=given.about,
        batch_size=settings.batch_size,
        call=given.call,
        mitigations=mitigations,
        detector=judging,
        look=GroundLook(manifest),
        planted=places,
        others=[made for made in free_detectors(given.setup) if made.name != judging.name and not made.norms],
        budgets=(settings.budget // 4, settings.budget),
        wordings=settings.wordings,
    )


def _on_ground(settings: MitigationSettings) -> tuple[Given, Manifest, list[Mitigation], Detector]:
    """What a bench of mitigations generates, the ground's manifest, the mitigations, and the detector that judges."""
    given = given_by(settings, None)
    assert given.manifest is not None
    named = settings.mitigation or [made for made in usable("mitigation") if given.setup.accepts(made)]
    found = [mitigation(made, given.setup) for made in named]
    return given, given.manifest, found, detector(settings.detector, given.setup)


def usable(kind: Literal["detector", "localizer", "mitigation"]) -> list[Any]:
    """The methods that can be used: of detectors also the means of maps. A package that is broken is passed over."""
    found = [create(kind, name) for name, entry in entries(kind).items() if entry.state == "ready"]
    if kind == "detector":
        maps = [name for name, entry in entries("localizer").items() if entry.state == "ready"]
        found += [detector(name) for name in maps if name not in entries("detector")]
    return found


def distance(manifest: Manifest, trial: Trial, image: Tensor) -> float:
    """The distance of a picture from what is planted under its caption."""
    entry: Any = manifest.planted_for(trial.prompt)
    return float(planted_distance(image.permute(1, 2, 0).numpy(), manifest.places(entry)))


def planted(manifest: Manifest, trial: Trial, image: Tensor) -> tuple[float | None, np.ndarray]:
    """The distance of a picture from what is planted under its caption, and where that is."""
    entry: Any = manifest.planted_for(trial.prompt)
    picture = image.permute(1, 2, 0).numpy()
    mask = nearest_place(picture, manifest.places(entry)).mask
    return distance(manifest, trial, image), np.ascontiguousarray(mask)


def masked(masks: dict[str, bytes], trial: Trial, image: Tensor) -> tuple[float | None, np.ndarray]:
    """Where a picture of the user's model is memorized: what the file of its label says, everywhere without one.

    Raises:
        UsageError: for a mask that cannot be read.
    """
    height, width = image.shape[1:]
    if not trial.mask:
        return None, np.ones((height, width), dtype=bool)
    try:
        with Image.open(BytesIO(masks[trial.mask])) as found:
            small = found.convert("L").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError):
        raise UsageError(f"cannot read the mask {trial.mask}, which is no picture; give a picture file") from None
    return None, np.asarray(small) > 127
