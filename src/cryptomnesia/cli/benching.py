"""`bench`: compare detectors and localizers on models of which the truth is known."""

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cryptomnesia.cli.common import app, call_of, check_folder, check_names, pipeline_of
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.errors import UsageError
from cryptomnesia.report.bench_tables import (
    print_attack_bench,
    print_bench,
    print_map_bench,
    print_mitigation_bench,
)
from cryptomnesia.report.console import progress_bar
from cryptomnesia.settings import (
    BenchDetectSettings,
    BenchLocalizeSettings,
    BenchMitigateSettings,
    MitigationSettings,
    TrialSettings,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from cryptomnesia.bench.detecting import Progress
    from cryptomnesia.bench.map_packet import MapPacket
    from cryptomnesia.bench.packet import Packet
    from cryptomnesia.bench.trials import Trial
    from cryptomnesia.detectors import Detector
    from cryptomnesia.mitigations import Mitigation
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.proving_ground.manifest import Manifest

benching = typer.Typer(
    help="Compare detectors and localizers on models of which the truth is known.", no_args_is_help=True
)
app.add_typer(benching, name="bench")

Output = Annotated[
    Path, typer.Option("-o", "--output", help="Folder of the bench. If it holds a stopped one, that one goes on.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")]

REFERENCES = 450
"""Reference captions of a ground: 150 show what is usual, the scores of the other 300 are the null."""

MAPPED = 150
"""Reference captions of a ground whose maps fix thresholds."""


@benching.command("detect")
@settings_flags()
def bench_detect(
    settings: BenchDetectSettings,
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Compare detectors on the same images, and keep every score in a packet.

    The images are those of a proving ground (--ground), or of a model of your own with labelled prompts (--model,
    --labels, --references).
    """
    from cryptomnesia.bench.detecting import PACKET
    from cryptomnesia.bench.packet import plain

    with progress_bar() as report:
        packet = detected(settings, output, report)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_bench(packet)
        typer.echo(f"{output / PACKET}: every score; `cryptomnesia bench verify` computes the figures again")


def detected(settings: BenchDetectSettings, folder: Path, report: "Progress") -> "Packet":
    """What `bench detect` measures, in a folder."""
    from cryptomnesia.bench.detecting import bench
    from cryptomnesia.detectors import detector

    check_folder(folder)
    check_names("detector", settings.detector)
    given = given_by(settings)
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
    return bench(
        given.setup,
        given.trials,
        given.references,
        detectors,
        folder,
        call=given.call,
        about=given.about,
        truth=None if given.manifest is None else partial(distance, given.manifest),
        threshold=given.threshold,
        batch_size=settings.batch_size,
        progress=report,
    )


@benching.command("mitigate")
@settings_flags()
def bench_mitigate(
    settings: BenchMitigateSettings,
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Compare mitigations on the same images, and keep what is seen in every picture in a packet.

    Every image of a planted caption is made again under every mitigation. It is a copy if it has the planted pixels, or
    the planted edges. Only proving grounds know that (--ground).
    """
    from cryptomnesia.bench.mitigating import PACKET
    from cryptomnesia.bench.packet import plain

    with progress_bar() as report:
        packet = mitigated(settings, output, report)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_mitigation_bench(packet)
        typer.echo(f"{output / PACKET}: all that was seen; `cryptomnesia bench verify` computes the figures again")


def mitigated(settings: BenchMitigateSettings, folder: Path, report: "Progress") -> "Packet":
    """What `bench mitigate` measures, in a folder."""
    from cryptomnesia.bench.clip_score import ClipScore
    from cryptomnesia.bench.looking import GroundLook
    from cryptomnesia.bench.mitigating import bench_mitigations
    from cryptomnesia.pipelines.loading import chosen_device

    given, manifest, mitigations, detector = on_ground(settings, folder)
    clip = None if settings.clip is None else ClipScore.load(settings.clip, device=chosen_device(settings.device))
    return bench_mitigations(
        given.setup,
        given.trials,
        given.references,
        mitigations,
        detector,
        folder,
        call=given.call,
        about=given.about,
        look=GroundLook(manifest),
        clip=clip,
        batch_size=settings.batch_size,
        progress=report,
    )


def on_ground(settings: MitigationSettings, folder: Path) -> "tuple[Given, Manifest, list[Mitigation], Detector]":
    """What a bench of mitigations generates, the ground's manifest, the mitigations, and the detector that judges.

    Raises:
        UsageError: without a ground, or for files, names and settings that do not fit together.
    """
    from cryptomnesia.detectors import detector
    from cryptomnesia.mitigations import mitigation

    check_folder(folder)
    check_names("mitigation", settings.mitigation)
    check_names("detector", [settings.detector])
    if settings.ground is None:
        raise UsageError("nobody knows what a model of your own has memorized; give a proving ground (--ground)")
    given = given_by(settings)
    assert given.manifest is not None
    named = settings.mitigation or [made for made in usable("mitigation") if given.setup.accepts(made)]
    found = [mitigation(made, given.setup) for made in named]
    return given, given.manifest, found, detector(settings.detector, given.setup)


@benching.command("localize")
@settings_flags()
def bench_localize(
    settings: BenchLocalizeSettings,
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Compare localizers on the same images with known masks, and keep every map in a packet.

    The images are those of a proving ground (--ground), or of a model of your own with labelled prompts (--model,
    --labels, --references).
    """
    from cryptomnesia.bench.localizing import MAPS
    from cryptomnesia.bench.packet import plain

    with progress_bar() as report:
        packet = mapped(settings, output, report)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_map_bench(packet)
        typer.echo(f"{output / MAPS}: every map; `cryptomnesia bench verify` computes the figures again")


def mapped(settings: BenchLocalizeSettings, folder: Path, report: "Progress") -> "MapPacket":
    """What `bench localize` measures, in a folder."""
    from cryptomnesia.bench.localizing import bench_maps
    from cryptomnesia.cli.maps import localizers_for

    check_folder(folder)
    check_names("localizer", settings.localizer)
    given = given_by(settings)
    named = settings.localizer or [made for made in usable("localizer") if given.setup.accepts(made)]
    return bench_maps(
        given.setup,
        given.trials,
        given.references,
        localizers_for(settings, named, given.setup),
        folder,
        about=given.about,
        truth=labelled if given.manifest is None else partial(planted, given.manifest),
        threshold=given.threshold,
        batch_size=settings.batch_size,
        progress=report,
    )


def usable(kind: Literal["detector", "localizer", "mitigation"]) -> list[Any]:
    """The methods that can be used: of detectors also the means of maps. A package that is broken is passed over."""
    from cryptomnesia.detectors import detector
    from cryptomnesia.registry import create, entries

    found = [create(kind, name) for name, entry in entries(kind).items() if entry.state == "ready"]
    if kind == "detector":
        maps = [name for name, entry in entries("localizer").items() if entry.state == "ready"]
        found += [detector(name) for name in maps if name not in entries("detector")]
    return found


@dataclass(frozen=True)
class Given:
    """What a bench generates, and with what; `manifest` is None for a model of the user's own."""

    setup: "Setup"
    trials: "list[Trial]"
    references: list[str]
    call: dict[str, Any]
    about: dict[str, Any]
    manifest: "Manifest | None" = None
    threshold: float = 0.0


def given_by(settings: TrialSettings) -> Given:
    """What the settings say.

    Raises:
        UsageError: for files and settings that do not fit together.
    """
    from cryptomnesia.bench.trials import of_file, of_ground
    from cryptomnesia.pipelines.setup import Setup
    from cryptomnesia.prompts import read_prompts
    from cryptomnesia.proving_ground.ground import ground_of
    from cryptomnesia.proving_ground.manifest import Manifest

    mapping, checkpoint = isinstance(settings, BenchLocalizeSettings), settings.checkpoint
    if settings.ground is not None:
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
        return Given(
            setup, trials, references, call, {"model": f"the ground {ground.name}"}, manifest, ground.threshold
        )
    assert settings.labels is not None
    assert settings.references is not None
    trials = of_file(settings.labels, settings.images_per_prompt)
    references = read_prompts(settings.references)
    if both := {trial.prompt for trial in trials} & set(references):
        raise UsageError(f"{len(both)} labelled prompts are references as well, {min(both)!r} for one; take them out")
    pipe = pipeline_of(settings)
    call = call_of(settings)
    less = pipeline_of(settings, checkpoint) if checkpoint is not None else None
    return Given(Setup.of(pipe, call, less), trials, references, call, {"model": str(settings.model)})


@benching.command()
def verify(
    packet: Annotated[
        Path, typer.Argument(help="File that a bench wrote: packet.json.xz or maps.safetensors, for instance.")
    ],
    as_json: AsJson = False,
) -> None:
    """Compute every figure of a packet again from its scores, with no model; exit code 1 if one is another."""
    from cryptomnesia.bench.attack_figures import figures_of as attack_figures_of
    from cryptomnesia.bench.figures import figures_of
    from cryptomnesia.bench.map_packet import MapPacket
    from cryptomnesia.bench.mitigation_figures import UNTOUCHED
    from cryptomnesia.bench.mitigation_figures import figures_of as mitigation_figures_of
    from cryptomnesia.bench.packet import Packet, differences, plain

    found: Any = MapPacket.load(packet) if packet.suffix == ".safetensors" else Packet.load(packet)
    if isinstance(found, MapPacket):
        figures = MapPacket.of(found.about, found.methods, found.rows, found.tensors).figures
        shown: Any = print_map_bench
    elif found.about.get("bench") == "mitigate":
        figures = mitigation_figures_of(found.rows, [UNTOUCHED, *found.methods])
        shown = print_mitigation_bench
    elif found.about.get("bench") == "attack":
        figures = attack_figures_of(found.rows, [UNTOUCHED, *found.methods])
        shown = print_attack_bench
    else:
        figures = figures_of(found.rows, list(found.methods))
        shown = print_bench
    if as_json:
        typer.echo(json.dumps(plain(figures), indent=2))
    else:
        shown(replace(found, figures=figures))
    if differing := differences(found.figures, figures):
        typer.echo(f"{packet} has figures that do not follow from its scores: {', '.join(differing[:3])}", err=True)
        raise typer.Exit(1)


@benching.command()
def schema() -> None:
    """Print the JSON schema of the packets that `bench detect` writes."""
    typer.echo((files("cryptomnesia.bench") / "packet.schema.json").read_text(encoding="utf-8").rstrip())


def distance(manifest: "Manifest", trial: "Trial", image: "Tensor") -> float:
    """The distance of a picture from what is planted under its caption."""
    from cryptomnesia.proving_ground.replication import planted_distance

    entry: Any = manifest.planted_for(trial.prompt)
    return float(planted_distance(image.permute(1, 2, 0).numpy(), manifest.places(entry)))


def planted(manifest: "Manifest", trial: "Trial", image: "Tensor") -> "tuple[float | None, np.ndarray]":
    """The distance of a picture from what is planted under its caption, and where that is."""
    import numpy as np

    from cryptomnesia.proving_ground.replication import nearest_place

    entry: Any = manifest.planted_for(trial.prompt)
    picture = image.permute(1, 2, 0).numpy()
    mask = nearest_place(picture, manifest.places(entry)).mask
    return distance(manifest, trial, image), np.ascontiguousarray(mask)


def labelled(trial: "Trial", image: "Tensor") -> "tuple[float | None, np.ndarray]":
    """Where a picture of the user's model is memorized: what the file of its label says, everywhere without one.

    Raises:
        UsageError: for a mask that cannot be read.
    """
    import numpy as np
    from PIL import Image

    height, width = image.shape[1:]
    if not trial.mask:
        return None, np.ones((height, width), dtype=bool)
    try:
        with Image.open(trial.mask) as found:
            small = found.convert("L").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError) as error:
        raise UsageError(f"cannot read the mask {trial.mask} ({error}); give a picture file") from None
    return None, np.asarray(small) > 127
