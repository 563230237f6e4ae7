"""`bench`: compare detectors and localizers on models of which the truth is known."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from cryptomnesia.cli.common import Engine, app
from cryptomnesia.cli.options import path_or_url, settings_flags
from cryptomnesia.report.bench_tables import (
    print_attack_bench,
    print_bench,
    print_map_bench,
    print_mitigation_bench,
)
from cryptomnesia.report.console import progress_bar
from cryptomnesia.settings import BenchDetectSettings, BenchLocalizeSettings, BenchMitigateSettings

benching = typer.Typer(
    help="Compare detectors and localizers on models of which the truth is known.", no_args_is_help=True
)
app.add_typer(benching, name="bench")

Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        parser=path_or_url,
        help="Folder of the bench, or a URL such as s3://bucket/bench. If it holds a stopped one, that one goes on.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that share the work: 1 on this machine, and on Ray one for every GPU, or every core without "
        "GPUs, unless given.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")]


@benching.command("detect")
@settings_flags()
def bench_detect(
    settings: BenchDetectSettings,
    output: Output,
    engine: Engine = "local",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Compare detectors on the same images, and keep every score in a packet.

    The images are those of a proving ground (--ground), or of a model of your own with labelled prompts (--model,
    --labels, --references).
    """
    from cryptomnesia.bench.detecting import PACKET
    from cryptomnesia.bench.packet import plain
    from cryptomnesia.cli.benches import detected

    with progress_bar() as report:
        packet = detected(settings, output, report, engine=engine, workers=workers)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_bench(packet)
        typer.echo(f"{output / PACKET}: every score; `cryptomnesia bench verify` computes the figures again")


@benching.command("mitigate")
@settings_flags()
def bench_mitigate(
    settings: BenchMitigateSettings,
    output: Output,
    engine: Engine = "local",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Compare mitigations on the same images, and keep what is seen in every picture in a packet.

    Every image of a planted caption is made again under every mitigation. It is a copy if it has the planted pixels, or
    the planted edges. Only proving grounds know that (--ground).
    """
    from cryptomnesia.bench.mitigating import PACKET
    from cryptomnesia.bench.packet import plain
    from cryptomnesia.cli.benches import mitigated

    with progress_bar() as report:
        packet = mitigated(settings, output, report, engine=engine, workers=workers)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_mitigation_bench(packet)
        typer.echo(f"{output / PACKET}: all that was seen; `cryptomnesia bench verify` computes the figures again")


@benching.command("localize")
@settings_flags()
def bench_localize(
    settings: BenchLocalizeSettings,
    output: Output,
    engine: Engine = "local",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Compare localizers on the same images with known masks, and keep every map in a packet.

    The images are those of a proving ground (--ground), or of a model of your own with labelled prompts (--model,
    --labels, --references).
    """
    from cryptomnesia.bench.localizing import MAPS
    from cryptomnesia.bench.packet import plain
    from cryptomnesia.cli.benches import mapped

    with progress_bar() as report:
        packet = mapped(settings, output, report, engine=engine, workers=workers)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_map_bench(packet)
        typer.echo(f"{output / MAPS}: every map; `cryptomnesia bench verify` computes the figures again")


@benching.command()
def verify(
    packet: Annotated[
        Path,
        typer.Argument(
            parser=path_or_url, help="File that a bench wrote: packet.json.xz or maps.safetensors, for instance."
        ),
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
