"""`calibrate`: what is usual in a set-up."""

from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptomnesia.cli.common import (
    Engine,
    app,
    call_of,
    check_names,
    check_writable,
    counted,
    make_folder,
    pipeline_of,
)
from cryptomnesia.cli.maps import BASE_DIFFERENCE, check_base, checkpoint_of, localizers_for, named_localizers
from cryptomnesia.cli.options import path_or_url, settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.places import remove
from cryptomnesia.report.console import print_changes, print_suspicious, progress_bar
from cryptomnesia.settings import CalibrateSettings, MapSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptomnesia.auditing.store import Store
    from cryptomnesia.calibration import Calibration
    from cryptomnesia.calibration.recording import Recording

BEGIN, REFERENCES, CALIBRATING = "begin", "references", "calibrating"
"""Stages of the work: everything is loaded and checked, references are recorded, the calibration is made from them."""


@app.command()
@settings_flags(arguments=["model"], needed=["model", "prompts"])
def calibrate(
    settings: CalibrateSettings,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=path_or_url,
            help="File to write, or its URL; calibration.safetensors in the model's folder is found without being "
            "named.",
        ),
    ],
    engine: Engine = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="On Ray: processes that share the work; one for every GPU, or every core without GPUs."
        ),
    ] = None,
) -> None:
    """Learn from prompts that are not memorized what is usual for a model, and save it for detect, guard and audit.

    One image is generated of every prompt. With --localizer it is mapped as well, so that localize can draw masks.
    Prompts that look memorized themselves are listed, and what would change without them. A calibration that was
    stopped goes on: what is recorded lies in OUTPUT.run until it is finished.
    """
    from cryptomnesia.calibration import fitting
    from cryptomnesia.calibration.outliers import changes
    from cryptomnesia.detectors import detector
    from cryptomnesia.pipelines.loading import check_exists
    from cryptomnesia.prompts import read_prompts

    captions = read_prompts(str(settings.prompts), settings.column)
    # whether the model takes captions, so that none may be repeated, is known when it is loaded
    fitting.check_references(captions, repeated=True, fpr=settings.fpr)
    check_exists(str(settings.model))
    check_names("detector", settings.detector)
    named_localizers(settings.localizer)
    check_base(settings, settings.detector)
    other = {"localizer", "checkpoint"} if BASE_DIFFERENCE in settings.detector else {"localizer"}
    given = [
        f"--{name}" for name in MapSettings.model_fields if name not in other and getattr(settings, name) is not None
    ]
    if given and not settings.localizer:
        raise UsageError(f"got {' and '.join(given)} for maps, and no --localizer; give one, or leave them out")
    check_writable(output)
    work = _Calibrating(settings, captions, output.with_name(f"{output.name}.run"))
    with progress_bar() as report:
        calibration, captions, judge = _calibrated(work, engine, workers, partial(report, "reference images"))
    found = calibration.suspicious()
    without = calibration.without([row.number for row in found])
    used = without if settings.leave_out == "suspicious" else calibration
    make_folder(output.parent)
    used.save(output)
    remove(work.folder)
    share = 100 * used.lowest_fpr
    maps = f"; maps of {', '.join(used.maps)}" if used.maps else ""
    left_out = f"; {len(used.left_out)} left out" if used.left_out else ""
    typer.echo(f"{output}: {len(used)} references{left_out}; false-positive rates from {share:.2f}% up{maps}")
    if found:
        print_suspicious(found, captions)
        if judge is not None:
            print_changes(changes(calibration, without, detector(judge)), judge)
        typer.echo(_advice(calibration, without, left_out=used is without))
    wanted = settings.fpr or fitting.DEFAULT_FPR
    if used.left_out and used.lowest_fpr > wanted >= calibration.lowest_fpr:
        typer.echo(
            f"warning: what was left out is missing for a rate of {wanted:g}; give {len(used.left_out)} other prompts "
            "in its place",
            err=True,
        )


def _calibrated(
    work: "_Calibrating", engine: str, workers: int | None, report: "Callable[[float, int], None]"
) -> "tuple[Calibration, list[str], str | None]":
    """The calibration, the captions that it was made from, and the name of the detector that is the model's default."""
    from cryptomnesia.auditing.audited import begun
    from cryptomnesia.engine import LOCAL, OnRay, check_engine

    check_engine(engine)
    if engine == LOCAL:
        if workers is not None:
            raise UsageError("got workers without an engine; give --engine ray, or leave them out")
        captions, judge, count = work((BEGIN, 0))
        size, total = work.settings.batch_size, len(captions)
        for number in work.store.work(REFERENCES, count):
            work((REFERENCES, number), lambda done, before=number * size: report(before + done, total))
        calibration = work((CALIBRATING, 0))
    else:
        device = work.settings.device
        with OnRay(work, engine, workers=workers, gpu=None if device is None else device.startswith("cuda")) as do:
            [(captions, judge, count)] = do([(BEGIN, 0)])
            total, store = len(captions), begun(work.folder)
            missing = store.missing(REFERENCES, count)
            units = ((REFERENCES, number, store.run) for number in missing)
            for done, _ in enumerate(do(units), start=count - len(missing) + 1):
                report(min(done * work.settings.batch_size, total), total)
            [calibration] = do([(CALIBRATING, 0, store.run)])
    return calibration, captions, judge


@dataclass
class _Calibrating:
    """The work of `calibrate`, in one of the processes that share it.

    Attributes:
        settings: of the command.
        captions: that its file holds.
        folder: where what is recorded is kept.
    """

    settings: CalibrateSettings
    captions: list[str]
    folder: Path

    def __call__(
        self, unit: tuple[str, int] | tuple[str, int, str], report: "Callable[[float], None] | None" = None
    ) -> Any:
        """Do a batch of a stage, and return what the command needs of it.

        Args:
            unit: name of the stage, and the number of the batch; on a cluster also `Store.run`.
            report: called with the number of images that are done.
        """
        from cryptomnesia.auditing.audited import check_seen
        from cryptomnesia.calibration.fitting import warn_of_references
        from cryptomnesia.detectors import DEFAULTS

        stage, number, *run = unit
        if run:
            check_seen(self.folder, run[0])
        if stage == BEGIN:
            _ = self.store
            judge = self._recording.setup.first_accepted("detector", DEFAULTS)
            return list(self._recording.captions), None if judge is None else judge.name, self._recording.batches
        if stage == REFERENCES:
            return self.store.write(REFERENCES, number, self._recording.batch(number, report))
        self.store.wait(REFERENCES, self._recording.batches)
        calibration = self._recording.calibration(self.store.rows(REFERENCES))
        warn_of_references(calibration)
        return calibration

    @cached_property
    def store(self) -> "Store":
        """The folder of what is recorded, begun if it is not there."""
        from cryptomnesia.auditing.store import Store
        from cryptomnesia.pipelines.fingerprint import weights_digest

        recording = self._recording
        about = {
            # what is left out is left out in the end
            "settings": self.settings.model_dump(mode="json", exclude={"device", "leave_out"}),
            "checkpoint": None if recording.setup.checkpoint is None else weights_digest(recording.setup.checkpoint),
            "versions": {name: version(name) for name in ("cryptomnesia", "torch", "diffusers", "transformers")},
            "fingerprint": recording.setup.fingerprint,
            "prompts": list(recording.captions),
            "localizers": [made.describe() for made in recording.localizers],
            "detectors": [made.describe() for made in recording.detectors],
        }
        return Store.create(self.folder, about)

    @cached_property
    def _recording(self) -> "Recording":
        """What is recorded, with the loaded model."""
        from cryptomnesia.calibration.fitting import recorded_by
        from cryptomnesia.pipelines.setup import Setup

        settings = self.settings
        checkpoint = checkpoint_of(settings, settings.localizer, settings.detector)
        setup = Setup.of(pipeline_of(settings), call_of(settings), checkpoint)
        return recorded_by(
            setup,
            self.captions,
            detectors=settings.detector,
            localizers=localizers_for(settings, settings.localizer, setup) if settings.localizer else [],
            fpr=settings.fpr,
            seed=settings.seed,
            long=settings.long,
            batch_size=settings.batch_size,
        )


def _advice(calibration: "Calibration", without: "Calibration", *, left_out: bool) -> str:
    """What it means to leave references out, and how to do it or undo it."""
    null = len(calibration.others)
    raised = (null - len(without.others)) / (null + 1)
    other = (
        "They were left out; without --leave-out they stay."
        if left_out
        else "Nothing was left out: give --leave-out suspicious, or other prompts in their place."
    )
    return (
        f"{other} Without them {counted(len(without), 'reference')} and false-positive rates from "
        f"{without.lowest_fpr:.2%} up remain. If they are ordinary after all, leaving them out raises every rate by "
        f"up to {raised:.2%}."
    )
