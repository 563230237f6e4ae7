"""An audit from its settings to a finished run directory, by one process or several."""

import math
import multiprocessing
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from cryptomnesia.auditing.examiner import Examiner, columns, trajectory_of
from cryptomnesia.auditing.options import Settings
from cryptomnesia.auditing.outcome import IMAGES, SCORES
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import Store, batch_count
from cryptomnesia.calibration.maps import MapCalibration
from cryptomnesia.calibration.scores import FIRST_SEED, Calibration, check_references, signals_of
from cryptomnesia.detection import check
from cryptomnesia.detectors import DETECTORS
from cryptomnesia.errors import CryptomnesiaError, UsageError
from cryptomnesia.localizers.methods import Method, mapped, method
from cryptomnesia.matching import SSCD, ImageIndex, Tiles
from cryptomnesia.matching.building import as_text
from cryptomnesia.matching.reproduction import FEWEST
from cryptomnesia.mitigations import default_rule
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.loading import BUNDLED, load_pipeline
from cryptomnesia.prompts import read_prompts
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import check_prompts

Progress = Callable[[str, float, int], None]
"""Called with what is being done, how much of it is, and of how much."""

Unit = tuple[str, int]
"""Prompt and seed of an image."""

_NAMED = 20
"""Files that the index does not hold, named in a run at most."""

REFERENCES = "references"
"""The stage before `IMAGES`."""


@dataclass(frozen=True)
class Setup:
    """A loaded model and what is to be done with it."""

    settings: Settings
    pipe: Any
    sampling: Sampling
    method: Method
    index: ImageIndex | None
    prompts: list[str]

    @classmethod
    def load(cls, settings: Settings, folder: Path | None = None, tell: Progress | None = None) -> "Setup":
        """Load everything that `settings` name.

        Args:
            settings: of the run.
            folder: of the run, where an index of `settings.training_images` is made; without one there is none.
            tell: see `Progress`.

        Raises:
            UsageError: for what is missing or does not fit.
        """
        prompts = list(dict.fromkeys(read_prompts(settings.prompts)))
        if settings.detector not in DETECTORS:
            raise UsageError(f"got the unknown detector {settings.detector!r}; known are {', '.join(DETECTORS)}")
        captions = [] if settings.references is None else read_prompts(settings.references)
        if captions:
            check_references(captions, rate=settings.rate)
            if both := set(captions) & set(prompts):
                raise UsageError(f"{len(both)} prompts are references as well, {min(both)!r} for one; take them out")
        method_ = method(settings.map)
        if method_.baseline == "checkpoint":
            raise UsageError(f"an audit has no second checkpoint, which {settings.map} needs; give another map")
        index = None
        descriptor = Tiles() if settings.sscd is None else SSCD(settings.sscd)
        if settings.index is not None:
            index = ImageIndex(settings.index, descriptor)
        elif settings.training_images is not None and folder is not None:
            if folder.resolve().is_relative_to(settings.training_images.resolve()):
                raise UsageError(f"{folder} is among the training images, which would match it; give another folder")
            index = ImageIndex.build(
                settings.training_images, folder / "index", descriptor, progress=partial(tell or _silent, "index")
            )
        # one that matches, one that does not, and those to compare their distance with; copies are none of these
        fewest = max(FEWEST + 2, math.ceil(1.5 / settings.rate))
        if index is not None and len(index) < fewest:
            raise UsageError(
                f"the index holds {len(index)} pictures, too few to tell a match from chance at a rate of "
                f"{settings.rate:g}; add other pictures of the kind, {fewest} at least and better hundreds"
            )
        pipe = load_pipeline(settings.model, scheduler=settings.scheduler, dtype=settings.dtype)
        guidance = settings.guidance
        if guidance is None:
            guidance = Manifest.load(BUNDLE).guidance if settings.model == BUNDLED else 7.5
        options = {} if settings.negative_prompt is None else {"negative_prompt": settings.negative_prompt}
        sampling = Sampling(settings.steps, guidance, settings.height, settings.width, options)
        check_prompts(pipe, prompts)
        check_prompts(pipe, captions)
        return cls(settings, pipe, sampling, method_, index, prompts)

    @property
    def units(self) -> list[Unit]:
        """Those of the run; a seed for every image, since pictures of one seed have their noise in common."""
        repeated = [prompt for prompt in self.prompts for _ in range(self.settings.images_per_prompt)]
        return [(prompt, self.settings.seed + number) for number, prompt in enumerate(repeated)]

    def about(self) -> dict[str, Any]:
        """Everything that the results depend on, as JSON values."""
        skipped = {} if self.index is None else self.index.skipped
        return {
            "settings": self.settings.model_dump(mode="json"),
            "prompts": self.prompts,
            "guidance": self.sampling.guidance,
            "weights": weights_digest(self.pipe),
            "references": None if self.settings.references is None else read_prompts(self.settings.references),
            "index": None if self.index is None else [self.index.descriptor.name, len(self.index)],
            "skipped": {as_text(path): why for path, why in sorted(skipped.items())[:_NAMED]},
            "skipped_count": len(skipped),
            "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")}
            | {"python": platform.python_version()},
        }


def audit(settings: Settings, folder: Path, *, workers: int = 1, progress: Progress | None = None) -> Store:
    """Run an audit, or go on with the one in `folder`, alone or beside other processes that do the same.

    Args:
        settings: see `Settings`.
        folder: of the run.
        workers: processes that share the work, this one among them, and the cores. A small network computes faster
            in several processes of few threads than in one of many; each holds the model.
        progress: see `Progress`.

    Raises:
        UsageError: for settings that do not fit, or a folder with another run.
        StoreError: if the folder cannot be written to; what is done stays.
    """
    tell = progress or _silent
    setup = Setup.load(settings, folder, tell)
    store = Store.create(folder, setup.about())
    with _helped(settings, folder, workers):
        examiner = _examiner(setup, *_calibrations(setup, store, tell))
        for number, some, report in _batches(store, IMAGES, setup.units, settings.batch_size, tell):
            prompts, seeds = zip(*some, strict=True)
            store.write(IMAGES, number, examiner(prompts, seeds, store.keep, progress=report))
        for _ in store.work(SCORES, 1):
            score(store)
        with store.alone():
            made = store.rows(SCORES)[0]
            if (made["detector"], made["rate"]) != (settings.detector, settings.rate):
                score(store)  # somebody judged by another detector since
    return store


@contextmanager
def _helped(settings: Settings, folder: Path, workers: int) -> Iterator[None]:
    """Other processes work on the run meanwhile."""
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_help, args=(settings, folder, share), daemon=True) for _ in range(workers - 1)]
    for other in others:
        other.start()
    torch.set_num_threads(share)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for other in others:
            other.terminate()
            other.join()


def _help(settings: Settings, folder: Path, threads: int) -> None:
    """Work on a run until it is done, or its first process, which says what goes wrong, is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = multiprocessing.parent_process()
    assert first is not None
    Thread(target=lambda: (first.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    with suppress(CryptomnesiaError):
        audit(settings, folder)


def _examiner(setup: Setup, calibration: Calibration, maps: MapCalibration) -> Examiner:
    """See that everything fits together."""
    settings = setup.settings
    check(
        setup.pipe,
        setup.sampling,
        calibration,
        detector=settings.detector,
        rate=settings.rate,
        localizer=setup.method.localizer,
        rule=default_rule(conditional=True) if settings.mitigate else None,
    )
    maps.check(setup.pipe, setup.sampling, [setup.method])
    reference = maps.references[setup.method.name]
    reference.threshold(settings.pixel_rate)
    if (len(reference.null) + 1) * settings.rate < 1:
        raise UsageError(
            f"{len(reference.null)} reference maps cannot support a rate of {settings.rate:g}; calibrate maps on "
            f"{math.ceil(1.5 / settings.rate)} captions, or give a higher rate"
        )
    return Examiner(
        pipe=setup.pipe,
        sampling=setup.sampling,
        calibration=calibration,
        maps=maps,
        method=setup.method,
        detector=settings.detector,
        rate=settings.rate,
        pixel_rate=settings.pixel_rate,
        mitigate=settings.mitigate,
        index=setup.index,
    )


def _silent(*_: object) -> None:
    """Nobody is told."""


def _batches(
    store: Store, stage: str, units: list[Unit], size: int, tell: Progress
) -> Iterator[tuple[int, list[Unit], Callable[[float], None]]]:
    """Number and units of every batch to be done here, and what is called with how many of them are."""
    count = batch_count(len(units), size)
    tell(stage, min(store.done(stage) * size, len(units)), len(units))
    for number in store.work(stage, count):
        before = min(store.done(stage) * size, len(units))

        def report(done: float, before: int = before) -> None:
            tell(stage, before + done, len(units))

        yield number, units[number * size : (number + 1) * size], report
    tell(stage, len(units), len(units))


def _calibrations(setup: Setup, store: Store, tell: Progress) -> tuple[Calibration, MapCalibration]:
    """Those that were given, or made from the references; kept in the run either way."""
    settings = setup.settings
    scores, regions = store.folder / "calibration.safetensors", store.folder / "maps.safetensors"
    if not scores.exists() or not regions.exists():
        if settings.references is not None:
            calibration, maps = _calibrated(setup, store, tell)
        else:
            own = settings.model == BUNDLED
            given = settings.calibration or (BUNDLE / "calibration.safetensors" if own else None)
            given_maps = settings.maps or (BUNDLE / "maps.safetensors" if own else None)
            if given is None or given_maps is None:
                raise UsageError(
                    "an audit needs references (captions that are not memorized), or both calibrations that were made "
                    "from some with `calibrate` and `calibrate-maps`"
                )
            calibration, maps = Calibration.load(given), MapCalibration.load(given_maps)
        with store.alone():
            calibration.save(scores)
            maps.save(regions)
    return Calibration.load(scores), MapCalibration.load(regions)


def _calibrated(setup: Setup, store: Store, tell: Progress) -> tuple[Calibration, MapCalibration]:
    """Both calibrations from one image of every reference."""
    assert setup.settings.references is not None
    captions = read_prompts(setup.settings.references)
    units = [(caption, FIRST_SEED + number) for number, caption in enumerate(captions)]
    methods = [setup.method]
    signals = signals_of(setup.pipe, setup.sampling, [setup.settings.detector])
    for number, some, report in _batches(store, REFERENCES, units, setup.settings.batch_size, tell):
        prompts, seeds = zip(*some, strict=True)
        size = len(some)
        ((batch, found, _),) = mapped(
            setup.pipe,
            prompts,
            seeds,
            setup.sampling,
            methods,
            None,
            batch_size=size,
            signals=signals,
            decode=False,
            progress=report,
        )
        whole = replace(batch.trajectory, steps={})
        each = [whole.rows([row]) for row in range(size)]
        rows = [
            {"prompt": prompt, "seed": seed, **columns(seen.norms, seen.signals), "map": heat.tolist()}
            for prompt, seed, seen, heat in zip(prompts, seeds, each, found[setup.method.name], strict=True)
        ]
        store.write(REFERENCES, number, rows)
    rows = store.rows(REFERENCES)
    maps = {setup.method.name: torch.tensor([row["map"] for row in rows])}
    return (
        Calibration.of(setup.pipe, captions, setup.sampling, trajectory_of(rows)),
        MapCalibration.of(setup.pipe, captions, setup.sampling, methods, maps),
    )
