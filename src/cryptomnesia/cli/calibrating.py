"""`calibrate`: what is usual in a set-up."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptomnesia.cli.common import app, call_of, check_names, check_writable, counted, make_folder, pipeline_of
from cryptomnesia.cli.maps import BASE_DIFFERENCE, check_base, checkpoint_of, localizers_for, named_localizers
from cryptomnesia.cli.options import path_or_url, settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_changes, print_suspicious, progress_bar
from cryptomnesia.settings import CalibrateSettings, MapSettings

if TYPE_CHECKING:
    from cryptomnesia.calibration import Calibration


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
) -> None:
    """Learn from prompts that are not memorized what is usual for a model, and save it for detect, guard and audit.

    One image is generated of every prompt. With --localizer it is mapped as well, so that localize can draw masks.
    Prompts that look memorized themselves are listed, and what would change without them.
    """
    from cryptomnesia.calibration import fitting
    from cryptomnesia.calibration.outliers import changes
    from cryptomnesia.detectors import DEFAULTS
    from cryptomnesia.pipelines.loading import check_exists
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.prompts import read_prompts
    from cryptomnesia.tracing.generation import kept_prompts

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
    pipe = pipeline_of(settings)
    checkpoint = checkpoint_of(settings, settings.localizer, settings.detector)
    setup = Setup.of(pipe, call_of(settings), checkpoint)
    localizers = localizers_for(settings, settings.localizer, setup) if settings.localizer else []
    if settings.long == "skip":
        # the numbers of suspicious references are those of the prompts that are left
        captions = kept_prompts(setup, captions, settings.long)
    with progress_bar() as report:
        calibration = fitting.calibrate(
            pipe,
            captions,
            detectors=settings.detector,
            localizers=localizers,
            checkpoint=checkpoint,
            fpr=settings.fpr,
            seed=settings.seed,
            long=settings.long,
            batch_size=settings.batch_size,
            progress=lambda done: report("reference images", done, len(captions)),
            **call_of(settings),
        )
    found = calibration.suspicious()
    without = calibration.without([row.number for row in found])
    used = without if settings.leave_out == "suspicious" else calibration
    make_folder(output.parent)
    used.save(output)
    share = 100 * used.lowest_fpr
    maps = f"; maps of {', '.join(used.maps)}" if used.maps else ""
    left_out = f"; {len(used.left_out)} left out" if used.left_out else ""
    typer.echo(f"{output}: {len(used)} references{left_out}; false-positive rates from {share:.2f}% up{maps}")
    if found:
        judge = setup.first_accepted("detector", DEFAULTS)
        print_suspicious(found, captions)
        if judge is not None:
            print_changes(changes(calibration, without, judge), judge.name)
        typer.echo(_advice(calibration, without, left_out=used is without))
    wanted = settings.fpr or fitting.DEFAULT_FPR
    if used.left_out and used.lowest_fpr > wanted >= calibration.lowest_fpr:
        typer.echo(
            f"warning: what was left out is missing for a rate of {wanted:g}; give {len(used.left_out)} other prompts "
            "in its place",
            err=True,
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
