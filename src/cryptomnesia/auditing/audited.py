"""The verb `audit`: from a model and prompts to a finished run directory, by one process or several."""

import json
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from cryptomnesia.auditing.examiner import Examiner
from cryptomnesia.auditing.outcome import IMAGES, SCORES, units_of
from cryptomnesia.auditing.planning import Plan, Progress, checked, make_index, needs_index, plan
from cryptomnesia.auditing.requests import Request
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import CALIBRATION, PATIENCE, Store, batch_count
from cryptomnesia.calibration.fitting import FIRST_SEED, warn_of_references
from cryptomnesia.calibration.recording import Recording
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.engine import LOCAL, WORKERS, WORKERS_PER_CORE, OnRay, check_engine
from cryptomnesia.errors import CryptomnesiaError, UsageError
from cryptomnesia.pipelines.loading import pipeline_of
from cryptomnesia.places import exists, place
from cryptomnesia.prompts import read_prompts
from cryptomnesia.settings import AuditSettings

logger = logging.getLogger("cryptomnesia")

CHECKING, BEGIN, REFERENCES, CALIBRATING = "checking", "begin", "references", "calibrating"
"""Stages before `IMAGES`: the run directory is made, references are recorded, and the calibration is made from them."""


def audit(
    model: Any,
    prompts: Iterable[str] | str | Path,
    output: str | Path,
    *,
    workers: int | None = None,
    engine: str = LOCAL,
    progress: Progress | None = None,
    **settings: Any,
) -> Store:
    """Judge a model by a set of prompts, with all evidence in a run directory; or go on with the run that is there.

    Several calls, in several processes, may work on the same run.

    Args:
        model: a loaded pipeline, or the name of a model as `load_pipeline` takes it.
        prompts: the texts to audit, or a file or folder of them as `read_prompts` takes it. Repeated ones are audited
            once.
        output: folder of the run, or a URL of fsspec such as `s3://bucket/run`; a run that was stopped goes on there.
        workers: processes that share the work. Here they share the cores, this process among them; one by default,
            but on CPUs a small network is faster in several processes of few threads than in one of many, and fewer if
            there are fewer batches. On Ray there is one for every GPU by default, or for every core if there is no GPU.
            Each process loads the model, so it has to be given by its name.
        engine: `local` for this machine, or the Ray cluster whose machines do the work: `ray` or `ray://HOST:10001`, as
            `cryptomnesia.engine.OnRay` takes it. These machines read the model by its name and write to `output`.
        progress: called with the stage (`index`, `references` or `images`), how much of it is done, and how much there
            is.
        **settings: fields of `cryptomnesia.settings.AuditSettings` by name, for instance `references=`, `fpr=` or
            `images_per_prompt=`. `detector`, `localizer`, `mitigation` and `calibration` may also be objects. `auto` is
            the default of the model's family, and the run stores the name of the method that was used. All other names
            are arguments of the pipeline's own call, `max_sequence_length=` or `eta=` for instance, which hold for
            references and images; `num_inference_steps` and `guidance_scale` are the same as the settings `steps` and
            `guidance`.

    Returns:
        The finished run; `cryptomnesia.auditing.outcome.outcome` reads the evidence from it.

    Raises:
        UsageError: at once, before anything is generated, for settings or arguments of the call that are unknown or do
            not fit, or a folder with another run.
        StoreError: if the folder cannot be written to; what is done stays.

    Example:
        run = audit("bundled", ["a red circle on a blue ground"], "run", images_per_prompt=2)
    """
    request = Request.of(model, prompts, settings)
    check_engine(engine)
    if workers is not None and workers < 1:
        raise UsageError(f"got {workers} workers; give at least 1")
    if engine != LOCAL:
        _check_shareable(request)
        return _run_on_ray(request, place(output), engine, workers, progress or _silent)
    workers = workers or 1
    cores = os.cpu_count() or 1
    if workers > (most := max(WORKERS, WORKERS_PER_CORE * cores)):
        raise UsageError(f"got {workers} workers, each a process, on {cores} cores; give at most {most}")
    if workers > 1:
        _check_shareable(request)
    return _run(request, place(output), workers, progress or _silent)


def _check_shareable(request: Request) -> None:
    """Refuse objects, which other processes cannot load, and arguments of the call that are no JSON values.

    Raises:
        UsageError: naming them.
    """
    given = [] if isinstance(request.model, str | Path) else ["the model"]
    given += [f"the {name}" for name in request.objects]
    if given:
        raise UsageError(
            f"got {' and '.join(given)} as an object, and several workers load everything by its name; give names, or "
            "work in one process"
        )
    if odd := sorted(name for name, value in request.call.items() if not _is_json(value)):
        raise UsageError(
            f"got {' and '.join(odd)} with a value that is no JSON value, and several workers share numbers, texts, "
            "lists and dictionaries of them only; give such a value, or "
            "work in one process"
        )


def _is_json(value: Any) -> bool:
    """Whether JSON can write a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _run(request: Request, folder: Path, workers: int, progress: Progress) -> Store:
    """Work on a run in this process, and in further ones of this machine, until it is finished."""
    texts = request.texts()
    request = replace(request, prompts=texts)
    if request.settings.references is None:
        # a process without a batch would only take a core from the others
        images = len(texts) * request.settings.images_per_prompt
        workers = min(workers, batch_count(images, request.settings.batch_size))
    with _helped(request, folder, workers) as begin:
        work = Work(request, folder, progress)
        store = work.store
        begin()

        def finish(stage: str, count: int, units: int) -> None:
            size = work.planned.settings.batch_size
            progress(stage, min(store.done(stage) * size, units), units)
            for number in store.work(stage, count):
                before = min(store.done(stage) * size, units)
                work((stage, number), lambda done, before=before: progress(stage, before + done, units))
            progress(stage, units, units)

        _in_stages(store, work, finish)
    return store


def _run_on_ray(request: Request, folder: Path, engine: str, workers: int | None, progress: Progress) -> Store:
    """Have the processes of a Ray cluster work on a run until it is finished; this process loads no model."""
    work = Work(_sent(request), folder)
    gpu = None if request.settings.device is None else request.settings.device.startswith("cuda")
    if needs_index(request.settings, folder):
        # what does not fit shows before many pictures are described
        with OnRay(work, engine, workers=1, gpu=gpu) as do:
            list(do([(CHECKING, 0)]))
        make_index(request.settings, folder, progress, engine=engine, workers=workers)
        work = replace(work, indexed=True)
    with OnRay(work, engine, workers=workers, gpu=gpu) as do:
        list(do([(BEGIN, 0)]))
        store = begun(folder)
        size = AuditSettings.resolve(store.about["settings"], environment={}).batch_size
        finish = partial(spread, do, store, size=size, progress=progress)
        _in_stages(store, lambda unit: list(do([(*unit, store.run)])), finish)
    return store


def spread(
    do: OnRay[Any, Any], store: Store, stage: str, count: int, units: int, *, size: int, progress: Progress
) -> None:
    """Have the processes of a cluster do what is left of a stage.

    Args:
        do: the processes.
        store: the run.
        stage: name of the stage.
        count: number of its batches.
        units: number of its images.
        size: images per batch.
        progress: as for `audit`.
    """
    missing = store.missing(stage, count)
    done = count - len(missing)
    progress(stage, min(done * size, units), units)
    for _ in do((stage, number, store.run) for number in missing):
        done += 1
        progress(stage, min(done * size, units), units)
    store.wait(stage, count)


def check_seen(folder: Path, run: str) -> None:
    """Check that this machine sees a run that another one has begun.

    Args:
        folder: of the run.
        run: its `Store.run`.

    Raises:
        UsageError: if it does not, or sees another one.
    """
    until = time.monotonic() + PATIENCE
    while True:
        with suppress(UsageError):
            if Store(folder).run == run:
                return
        if time.monotonic() > until:
            raise UsageError(
                f"the machine {socket.gethostname()} of the cluster does not see the run in {folder}; give a folder "
                "that all machines share, or a URL such as s3://bucket/run"
            )
        time.sleep(1)


def begun(folder: Path) -> Store:
    """The run that a process of the cluster has begun.

    Raises:
        UsageError: if this machine does not see it.
    """
    try:
        return Store(folder)
    except UsageError:
        raise UsageError(
            f"a machine of the cluster has begun the run in {folder}, which this machine does not see; give a folder "
            "that all machines share, or a URL such as s3://bucket/run"
        ) from None


def _in_stages(store: Store, once: Callable[[tuple[str, int]], Any], finish: Callable[[str, int, int], None]) -> None:
    """Have everything done that is left of a run.

    Args:
        store: the run.
        once: called with a unit that is no batch; returns when it is done.
        finish: called with a stage, the number of its batches and of its images; returns when the stage is done.
    """
    settings = AuditSettings.resolve(store.about["settings"], environment={})
    if not exists(store.folder / CALIBRATION):
        if (references := store.about["references"]) is not None:
            finish(REFERENCES, batch_count(len(references), settings.batch_size), len(references))
        once((CALIBRATING, 0))
    images = len(units_of(store.about["prompts"], settings))
    finish(IMAGES, batch_count(images, settings.batch_size), images)
    for _ in store.work(SCORES, 1):
        score(store)
    with store.alone():
        first = store.rows(SCORES)[0]
        # `rescore` may have judged the run by another detector meanwhile
        judged = first["made_by"], first.get("fdr"), first.get("fpr_given", first["fpr"])
        if judged != (store.about["made_by"]["detector"], settings.fdr, settings.fpr):
            score(store)


@dataclass
class Work:
    """The work on a run, in one of the processes that share it.

    Attributes:
        request: the audit.
        folder: of the run.
        progress: called while an index is made.
        indexed: whether the index of training images was just made by the processes of a cluster.
    """

    request: Request
    folder: Path
    progress: Progress | None = None
    indexed: bool = False
    _seen: bool = False

    def __call__(
        self, unit: tuple[str, int] | tuple[str, int, str], report: Callable[[float], None] | None = None
    ) -> None:
        """Do a batch of a stage, and write it into the run directory.

        Args:
            unit: name of the stage, and the number of the batch; on a cluster also `Store.run`.
            report: called with the number of images that are done.

        Raises:
            UsageError: if this machine does not see the run.
        """
        stage, number, *run = unit
        if run and not self._seen:
            check_seen(self.folder, run[0])
            self._seen = True
        if stage == CHECKING:
            checked(self.request, self.folder)
        elif stage == BEGIN:
            _ = self.store
        elif stage == REFERENCES:
            self.store.write(REFERENCES, number, self._recording.batch(number, report))
        elif stage == CALIBRATING:
            self._calibrate()
        else:
            size = self.planned.settings.batch_size
            prompts, seeds = zip(*self.planned.units[number * size : (number + 1) * size], strict=True)
            self.store.write(IMAGES, number, self._examiner(prompts, seeds, self.store.keep, progress=report))

    @cached_property
    def planned(self) -> Plan:
        """What is to be done, with the loaded model."""
        return plan(self.request, self.folder, self.progress, indexed=self.indexed)

    @cached_property
    def store(self) -> Store:
        """The run, begun if it is not there."""
        return Store.create(self.folder, self.planned.about)

    @cached_property
    def _examiner(self) -> Examiner:
        """What examines the images of the run."""
        planned, calibration = self.planned, Calibration.load(self.store.folder / CALIBRATION)
        return Examiner(
            examination=planned.examination(calibration),
            reference=None if planned.localizer is None else calibration.map_reference(planned.localizer),
            pixel_fpr=planned.settings.pixel_fpr,
            index=planned.index,
        )

    @cached_property
    def _recording(self) -> Recording:
        """What is recorded of the references."""
        planned = self.planned
        localizers = [] if planned.localizer is None else [planned.localizer]
        references, size = planned.references or [], planned.settings.batch_size
        return Recording(planned.setup, references, [planned.detector], localizers, FIRST_SEED, size)

    def _calibrate(self) -> None:
        """Write the calibration that was given, or that is made from one image of every reference prompt."""
        path = self.store.folder / CALIBRATION
        calibration = self.planned.calibration
        if calibration is None:
            self.store.wait(REFERENCES, self._recording.batches)
            calibration = self._recording.calibration(self.store.rows(REFERENCES))
            warn_of_references(calibration)
        with self.store.alone():
            if not exists(path):
                calibration.save(path)


def _sent(request: Request) -> Request:
    """The request with the content of its files, which other machines may not have."""
    settings = request.settings
    references = None if settings.references is None else tuple(read_prompts(settings.references))
    given = settings.calibration
    objects = {} if given is None else {"calibration": Calibration.load(given)}
    return replace(request, prompts=request.texts(), references=references, objects=objects)


@contextmanager
def _helped(request: Request, folder: Path, workers: int) -> Iterator[Callable[[], None]]:
    """Have other processes work on the run during the block, from when the function is called that it is given.

    They import and load the model before that, while the first process does the same.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    helpers = [
        context.Process(target=_help, args=(request, folder, share, begun), daemon=True) for _ in range(workers - 1)
    ]
    for helper in helpers:
        helper.start()
    torch.set_num_threads(share)
    try:
        yield begun.set
    finally:
        torch.set_num_threads(threads)
        for helper in helpers:
            helper.terminate()
            helper.join()


def _help(request: Request, folder: Path, threads: int, begun: Event) -> None:
    """Work on a run until it is done or the first process, which reports errors, has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = multiprocessing.parent_process()
    assert first is not None
    Thread(target=lambda: (first.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        request = replace(request, model=pipeline_of(request.settings))
        begun.wait()
        _run(request, folder, 1, _silent)
    except CryptomnesiaError:
        pass
    # a traceback would help nobody who reads the first process's one line
    except Exception as error:
        logger.warning("a worker of the audit stopped (%s: %s); the others go on", type(error).__name__, error)


def _silent(*_: object) -> None:
    """Take reports of progress and do nothing with them."""
