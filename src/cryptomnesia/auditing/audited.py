"""The verb `audit`: from a model and prompts to a finished run directory, by one process or several."""

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from cryptomnesia.auditing.examiner import Examiner
from cryptomnesia.auditing.outcome import IMAGES, SCORES
from cryptomnesia.auditing.planning import Plan, Progress, Unit, plan
from cryptomnesia.auditing.requests import Request
from cryptomnesia.auditing.rows import columns, trajectory_of
from cryptomnesia.auditing.scoring import score
from cryptomnesia.auditing.store import CALIBRATION, Store, batch_count
from cryptomnesia.calibration.fitting import FIRST_SEED, fitted, recorded_for, warn_of_references
from cryptomnesia.calibration.stored import Calibration
from cryptomnesia.errors import CryptomnesiaError, UsageError
from cryptomnesia.localizers.mapping import mapped

logger = logging.getLogger("cryptomnesia")

REFERENCES = "references"
"""The stage before `IMAGES`, of a run that makes its own calibration."""


_WORKERS, _WORKERS_PER_CORE = 16, 4
"""Workers that any machine may have, and those that it may have for every core; many more would take all its memory."""


def audit(
    model: Any,
    prompts: Iterable[str] | str | Path,
    output: str | Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    **settings: Any,
) -> Store:
    """Judge a model by a set of prompts, with all evidence in a run directory; or go on with the run that is there.

    Several calls, in several processes, may work on the same run.

    Args:
        model: a loaded pipeline, or the name of a model as `load_pipeline` takes it.
        prompts: the texts to audit, or a file or folder of them as `read_prompts` takes it. Repeated ones are audited
            once.
        output: folder of the run; a run that was stopped goes on there.
        workers: processes that share the work and the cores, this process among them. On CPUs a small network is faster
            in several processes of few threads than in one of many. Each process loads the model, so it has to be given
            by its name.
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
    if workers < 1:
        raise UsageError(f"got {workers} workers; give at least 1")
    cores = os.cpu_count() or 1
    if workers > (most := max(_WORKERS, _WORKERS_PER_CORE * cores)):
        raise UsageError(f"got {workers} workers, each a process, on {cores} cores; give at most {most}")
    if workers > 1:
        _check_shareable(request)
    return _run(request, Path(output), workers, progress or _silent)


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
            "workers=1"
        )
    if odd := sorted(name for name, value in request.call.items() if not _is_json(value)):
        raise UsageError(
            f"got {' and '.join(odd)} with a value that is no JSON value, and several workers share numbers, texts, "
            "lists and dictionaries of them only; give such a value, or workers=1"
        )


def _is_json(value: Any) -> bool:
    """Whether JSON can write a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _run(request: Request, folder: Path, workers: int, progress: Progress) -> Store:
    """Work on a run until it is finished."""
    planned = plan(request, folder, progress)
    store = Store.create(folder, planned.about)
    settings = planned.settings
    with _helped(request, folder, workers):
        examiner = _examiner(planned, _calibration(planned, store, progress))
        for number, units, report in _batches(store, IMAGES, planned.units, settings.batch_size, progress):
            prompts, seeds = zip(*units, strict=True)
            store.write(IMAGES, number, examiner(prompts, seeds, store.keep, progress=report))
        for _ in store.work(SCORES, 1):
            score(store)
        with store.alone():
            first = store.rows(SCORES)[0]
            # `rescore` may have judged the run by another detector meanwhile
            judged = first["made_by"], first.get("fdr"), first.get("fpr_given", first["fpr"])
            if judged != (planned.about["made_by"]["detector"], settings.fdr, settings.fpr):
                score(store)
    return store


def _examiner(planned: Plan, calibration: Calibration) -> Examiner:
    """What examines the images of the run."""
    return Examiner(
        examination=planned.examination(calibration),
        reference=None if planned.localizer is None else calibration.map_reference(planned.localizer),
        pixel_fpr=planned.settings.pixel_fpr,
        index=planned.index,
    )


def _calibration(planned: Plan, store: Store, progress: Progress) -> Calibration:
    """The calibration that was given or that is made from the references; the run keeps it in either case."""
    path = store.folder / CALIBRATION
    if not path.exists():
        calibration = planned.calibration
        if calibration is None:
            calibration = _calibrated(planned, store, progress)
            warn_of_references(calibration)
        with store.alone():
            if not path.exists():
                calibration.save(path)
    return Calibration.load(path)


def _calibrated(planned: Plan, store: Store, progress: Progress) -> Calibration:
    """The calibration from one image of every reference prompt."""
    captions = planned.references or []
    localizers = [] if planned.localizer is None else [planned.localizer]
    norms, signals = recorded_for([planned.detector])
    units = [(caption, FIRST_SEED + number) for number, caption in enumerate(captions)]
    for number, batch_units, report in _batches(store, REFERENCES, units, planned.settings.batch_size, progress):
        prompts, seeds = zip(*batch_units, strict=True)
        ((batch, maps),) = mapped(
            planned.setup,
            prompts,
            seeds,
            localizers,
            batch_size=len(prompts),
            norms=norms,
            signals=signals,
            decode=False,
            progress=report,
        )
        runs = batch.trajectory.bare()
        store.write(
            REFERENCES,
            number,
            [
                {
                    "prompt": prompt,
                    "seed": seed,
                    **columns(runs.rows([row])),
                    **{f"map:{name}": heat.values[row].tolist() for name, heat in maps.items()},
                }
                for row, (prompt, seed) in enumerate(batch_units)
            ],
        )
    rows = store.rows(REFERENCES)
    return fitted(
        planned.setup,
        captions,
        trajectory_of(rows),
        {localizer.name: torch.tensor([row[f"map:{localizer.name}"] for row in rows]) for localizer in localizers},
        norms=norms,
        signals=signals,
        localizers=localizers,
    )


def _batches(
    store: Store, stage: str, units: list[Unit], size: int, progress: Progress
) -> Iterator[tuple[int, list[Unit], Callable[[float], None]]]:
    """Number and units of every batch to be done here, and what is called with the number of them that are done."""
    count = batch_count(len(units), size)
    progress(stage, min(store.done(stage) * size, len(units)), len(units))
    for number in store.work(stage, count):
        before = min(store.done(stage) * size, len(units))

        def report(done: float, before: int = before) -> None:
            progress(stage, before + done, len(units))

        yield number, units[number * size : (number + 1) * size], report
    progress(stage, len(units), len(units))


@contextmanager
def _helped(request: Request, folder: Path, workers: int) -> Iterator[None]:
    """Have other processes work on the run during the block."""
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    context = multiprocessing.get_context("spawn")
    helpers = [context.Process(target=_help, args=(request, folder, share), daemon=True) for _ in range(workers - 1)]
    for helper in helpers:
        helper.start()
    torch.set_num_threads(share)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for helper in helpers:
            helper.terminate()
            helper.join()


def _help(request: Request, folder: Path, threads: int) -> None:
    """Work on a run until it is done or the first process, which reports errors, has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = multiprocessing.parent_process()
    assert first is not None
    Thread(target=lambda: (first.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        _run(request, folder, 1, _silent)
    except CryptomnesiaError:
        pass
    # a traceback would help nobody who reads the first process's one line
    except Exception as error:
        logger.warning("a worker of the audit stopped (%s: %s); the others go on", type(error).__name__, error)


def _silent(*_: object) -> None:
    """Take reports of progress and do nothing with them."""
