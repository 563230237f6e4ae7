"""`calibrate`: what is usual in a set-up."""

from pathlib import Path
from typing import Annotated

import typer

from cryptomnesia.cli.common import app, call_of, check_names, check_writable, make_folder, pipeline_of
from cryptomnesia.cli.maps import checkpoint_of, localizers_for, named_localizers
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import progress_bar
from cryptomnesia.settings import CalibrateSettings, MapSettings


@app.command()
@settings_flags(arguments=["model"], needed=["model", "prompts"])
def calibrate(
    settings: CalibrateSettings,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="File to write; calibration.safetensors in the model's folder is found without being named.",
        ),
    ],
) -> None:
    """Learn from captions that are not memorized what is usual for a model, and save it for detect, guard and audit.

    One image is generated of every caption. With --localizer it is mapped as well, so that localize can draw masks.
    """
    from cryptomnesia.calibration import fitting
    from cryptomnesia.pipelines.loading import check_exists
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.prompts import read_prompts

    captions = read_prompts(Path(str(settings.prompts)))
    check_exists(str(settings.model))
    check_names("detector", settings.detector)
    named_localizers(settings.localizer)
    given = [
        f"--{name}" for name in MapSettings.model_fields if name != "localizer" and getattr(settings, name) is not None
    ]
    if given and not settings.localizer:
        raise UsageError(f"got {' and '.join(given)} for maps, and no --localizer; give one, or leave them out")
    check_writable(output)
    pipe = pipeline_of(settings)
    checkpoint = checkpoint_of(settings, settings.localizer)
    setup = Setup.of(pipe, call_of(settings), checkpoint)
    localizers = localizers_for(settings, settings.localizer, setup) if settings.localizer else []
    with progress_bar() as report:
        calibration = fitting.calibrate(
            pipe,
            captions,
            detectors=settings.detector,
            localizers=localizers,
            checkpoint=checkpoint,
            seed=settings.seed,
            batch_size=settings.batch_size,
            progress=lambda done: report("reference images", done, len(captions)),
            **call_of(settings),
        )
    make_folder(output.parent)
    calibration.save(output)
    share = 100 * calibration.lowest_fpr
    maps = f"; maps of {', '.join(calibration.maps)}" if calibration.maps else ""
    typer.echo(f"{output}: {len(captions)} references; false-positive rates from {share:.2f}% up{maps}")
    if share > 1:
        typer.echo("the default false-positive rate of detect is 1% (--fpr 0.01); 150 references support it", err=True)
