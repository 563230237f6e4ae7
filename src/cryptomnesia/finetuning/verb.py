"""The verb `finetune`: from which step on does a training return its own pictures?"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptomnesia.engine import LOCAL, check_engine
from cryptomnesia.errors import UsageError
from cryptomnesia.finding.pictures import Picture, distinct
from cryptomnesia.finding.verb import Captions, without_copies
from cryptomnesia.finetuning.checkpoints import Checkpoint, checkpoints_in, watching
from cryptomnesia.finetuning.course import Course
from cryptomnesia.finetuning.data import duplicates_of, notes_on, training_pictures
from cryptomnesia.finetuning.work import PROBLEM, Finetuning
from cryptomnesia.parts import Progress, run
from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.pipelines.origins.options import SETTINGS, parse_options
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.places import names, place, read_text
from cryptomnesia.prompts import captions_of
from cryptomnesia.settings import FinetuneSettings

logger = logging.getLogger("cryptomnesia")


def finetune(
    checkpoints: str | Path,
    base: Any,
    data: Any,
    captions: Captions = None,
    *,
    held_out: Any = None,
    held_out_captions: Captions = None,
    other_captions: Sequence[str] | str | Path = (),
    output: str | Path | None = None,
    watch: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    updated: Callable[[Course], None] = lambda course: None,
    workers: int | None = None,
    engine: str = LOCAL,
    progress: Progress | None = None,
    **settings: Any,
) -> Course:
    """Say from which checkpoint on a training returns its own pictures.

    Args:
        checkpoints: folder of the checkpoints; see `checkpoints_in` for the layouts.
        base: name of the model that the training began from, as `load_pipeline` takes it.
        data: the pictures of the training: a folder, a tar shard, a table, or pictures in memory, as for `find`.
        captions: one text per picture, name of a file → text, or a file with the columns file_name and text; by
            default those that lie beside the files.
        held_out: pictures like those of the training that it does not see, as for `data`.
        held_out_captions: as `captions`.
        other_captions: further captions that the training does not see, or a file of them.
        output: folder or URL of the run, with `finetune.json` and the page `index.html`; a run that was stopped goes on
            there, also with more checkpoints. Without one nothing is kept.
        watch: seconds between two looks at the folder, to follow a training that is still running; None measures what
            is there.
        stop: called between two looks; ends the watching if it returns True.
        updated: called with the course after every look that found new checkpoints.
        workers: processes that share the work; one on this machine unless given.
        engine: `local` for this machine, or the Ray cluster whose machines do the work.
        progress: called with (what, done, in all).
        **settings: `images`, `most`, `scale`, `alpha`, `seed`, `thumbnails`, `batch_size`, and how a model is loaded,
            as fields of `cryptomnesia.settings.FinetuneSettings`. All other names are arguments of the pipeline's call.

    Returns:
        What the training does over its checkpoints.

    Raises:
        UsageError: for a folder without checkpoints, checkpoints of another base, pictures or captions that cannot be
            used, or a model that cannot be asked about pictures.

    Example:
        course = finetune("output", "stable-diffusion-v1-5/stable-diffusion-v1-5", "my-pictures", output="course")
        course.start, course.before
    """
    check_engine(engine)
    if not isinstance(base, str | Path):
        raise UsageError(f"got a {type(base).__name__} as the base; give its name, with which checkpoints are loaded")
    known = {name: value for name, value in settings.items() if name in FinetuneSettings.model_fields}
    call = {name: value for name, value in settings.items() if name not in known and value is not None}
    given = FinetuneSettings.resolve({**known, "base": str(base)}, environment={})
    files = training_pictures(data, captions)
    duplicates = duplicates_of(files)
    notes = notes_on(duplicates, files)
    for note in notes:
        logger.warning(note)
    pictures = distinct(files)
    controls = [] if held_out is None else distinct(training_pictures(held_out, held_out_captions))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) if output is None else place(output)
        making = Making(
            given,
            call,
            pictures,
            without_copies(controls, pictures),
            captions_of(other_captions) if other_captions else [],
            duplicates,
            notes,
            folder,
        )
        gpu = None if given.device is None else given.device.startswith("cuda")
        found = None
        looks = _looks(Path(checkpoints), watch, stop)
        several: Sequence[Checkpoint] = ()
        scales = given.scale if watch is None else ()
        for several in looks:
            forget_problems(folder)
            work = making.on(several, scales)
            found = run(work, folder, engine=engine, workers=workers, gpu=gpu, progress=progress)
            updated(found)
        if watch is not None and given.scale and several:
            # of the last checkpoint alone, and which that is shows at the end
            work = making.on(several, given.scale)
            found = run(work, folder, engine=engine, workers=workers, gpu=gpu, progress=progress)
            updated(found)
        if found is None:
            raise UsageError(f"no checkpoint appeared in {checkpoints}; give the folder that the training writes to")
        return found


def forget_problems(folder: Path) -> None:
    """Remove what is written in the place of parts that could not be measured, so that they are tried again."""
    for name in names(folder, ".json"):
        if name.startswith("point-") and PROBLEM in json.loads(read_text(folder / name)):
            (folder / name).unlink(missing_ok=True)


def _looks(folder: Path, watch: float | None, stop: Callable[[], bool]) -> Iterator[list[Checkpoint]]:
    """The checkpoints at every look that found new ones."""
    if watch is None:
        yield checkpoints_in(folder)
    else:
        yield from watching(folder, watch, stop)


@dataclass(frozen=True)
class Making:
    """Makes the work, in the process that calls it.

    Attributes:
        settings: of the run.
        call: further arguments of the pipeline's call.
        pictures: of the training.
        held_out: pictures that the training does not see.
        further: captions that it does not see.
        duplicates: groups of names of training pictures that are nearly the same.
        notes: on them, in sentences.
        folder: of the run.
        checkpoints: by step.
        scales: of the LoRA of the last checkpoint.
    """

    settings: FinetuneSettings
    call: Mapping[str, Any]
    pictures: Sequence[Picture]
    held_out: Sequence[Picture]
    further: Sequence[str]
    duplicates: Sequence[Sequence[str]]
    notes: Sequence[str]
    folder: Path
    checkpoints: Sequence[Checkpoint] = ()
    scales: Sequence[float] = ()

    def on(self, checkpoints: Sequence[Checkpoint], scales: Sequence[float]) -> "Making":
        """The same with other checkpoints, and scales of the LoRA of the last one."""
        return replace(self, checkpoints=checkpoints, scales=scales)

    def __call__(self) -> Finetuning:
        """The work, with the loaded base model."""
        settings = self.settings
        loading = {
            "scheduler": settings.scheduler,
            "device": settings.device,
            "dtype": settings.dtype,
            "variant": settings.variant,
            "revision": settings.revision,
            "base": settings.base_config,
            "without": settings.without,
        }
        model = str(settings.base)
        given = {name: getattr(settings, setting) for name, setting in SETTINGS.items()}
        call = {name: value for name, value in given.items() if value is not None}
        return Finetuning(
            base=Setup.of(load_pipeline(model, **loading), {**call, **parse_options(settings.option), **self.call}),
            model=model,
            loading=loading,
            checkpoints=self.checkpoints,
            pictures=self.pictures,
            held_out=self.held_out,
            further=self.further,
            duplicates=self.duplicates,
            notes=self.notes,
            folder=self.folder,
            images=settings.images,
            most=settings.most,
            scales=self.scales,
            alpha=settings.alpha,
            seed=settings.seed,
            thumbnails=settings.thumbnails,
            batch_size=settings.batch_size,
        )
