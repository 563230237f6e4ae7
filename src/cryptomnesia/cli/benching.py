"""`bench`: compare detectors on models of which the truth is known."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptomnesia.cli.common import app, call_of, check_folder, check_names, pipeline_of
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.console import print_bench, progress_bar
from cryptomnesia.settings import BenchSettings

if TYPE_CHECKING:
    from torch import Tensor

    from cryptomnesia.bench.trials import Trial
    from cryptomnesia.proving_ground.manifest import Manifest

benching = typer.Typer(help="Compare detectors on models of which the truth is known.", no_args_is_help=True)
app.add_typer(benching, name="bench")

REFERENCES = 450
"""Reference captions of a ground: 150 show what is usual, the scores of the other 300 are the null."""


@benching.command("detect")
@settings_flags()
def bench_detect(
    settings: BenchSettings,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the bench. If it holds a stopped one, that one goes on.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Compare detectors on the same images, and keep every score in a packet.

    The images are those of a proving ground (--ground), or of a model of your own with labelled prompts (--model,
    --labels, --references).
    """
    from cryptomnesia.bench.detecting import PACKET, bench
    from cryptomnesia.bench.packet import plain
    from cryptomnesia.bench.trials import of_file, of_ground
    from cryptomnesia.detectors import detector, detector_names
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.prompts import read_prompts
    from cryptomnesia.proving_ground.ground import ground_of
    from cryptomnesia.proving_ground.manifest import Manifest

    check_folder(output)
    check_names("detector", settings.detector)
    truth, threshold = None, 0.0
    if settings.ground is not None:
        ground = ground_of(settings.ground)
        if not ground.captioned:
            raise UsageError(f"{ground.name} has no captions, so nothing tells its images apart; give another ground")
        folder = settings.bundle or ground.bundle
        manifest = Manifest.load(folder)
        if manifest.ground != ground.name:
            raise UsageError(f"{folder} is a model of {manifest.ground}; give one of {ground.name}")
        references = manifest.control_captions("calibration", REFERENCES)
        trials = of_ground(manifest, settings.positives, settings.negatives, references)
        pipe = pipeline_of(settings, str(folder / "pipeline"))
        manifest.check(pipe)
        call = {**ground.call(manifest.steps, manifest.guidance), **call_of(settings)}
        truth, threshold = partial(distance, manifest), ground.threshold
        about = {"model": f"the ground {ground.name}"}
    else:
        assert settings.labels is not None
        assert settings.references is not None
        trials = of_file(settings.labels, settings.images_per_prompt)
        references = read_prompts(settings.references)
        if both := {trial.prompt for trial in trials} & set(references):
            raise UsageError(
                f"{len(both)} labelled prompts are references as well, {min(both)!r} for one; take them out"
            )
        pipe = pipeline_of(settings)
        call = call_of(settings)
        about = {"model": str(settings.model)}
    setup = Setup.of(pipe, call)
    named = settings.detector or detector_names()
    detectors = [made for made in map(detector, named) if settings.detector or setup.accepts(made)]
    with progress_bar() as report:
        packet = bench(
            setup,
            trials,
            references,
            detectors,
            output,
            call=call,
            about=about,
            truth=truth,
            threshold=threshold,
            batch_size=settings.batch_size,
            progress=report,
        )
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_bench(packet)
        typer.echo(f"{output / PACKET}: every score; `cryptomnesia bench verify` computes the figures again")


@benching.command()
def verify(
    packet: Annotated[Path, typer.Argument(help="File packet.json of a bench.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Compute every figure of a packet again from its scores, with no model; exit code 1 if one is another."""
    from cryptomnesia.bench.figures import figures_of
    from cryptomnesia.bench.packet import Packet, plain

    found = Packet.load(packet)
    figures = figures_of(found.rows, list(found.methods))
    if as_json:
        typer.echo(json.dumps(plain(figures), indent=2))
    else:
        print_bench(found)
    if differing := found.differences(figures):
        typer.echo(f"{packet} has figures that do not follow from its scores: {', '.join(differing[:3])}", err=True)
        raise typer.Exit(1)


def distance(manifest: "Manifest", trial: "Trial", image: "Tensor") -> float:
    """The distance of a picture from what is planted under its caption."""
    from cryptomnesia.proving_ground.replication import planted_distance

    entry: Any = manifest.planted_for(trial.prompt)
    return float(planted_distance(image.permute(1, 2, 0).numpy(), manifest.places(entry)))
