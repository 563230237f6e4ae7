"""`bench attack`: can an attacker bring planted pictures back under a mitigation?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cryptomnesia.cli.benching import AsJson, Output, benching, on_ground
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.report.bench_tables import print_attack_bench
from cryptomnesia.report.console import progress_bar
from cryptomnesia.settings import BenchAttackSettings

if TYPE_CHECKING:
    from cryptomnesia.bench.detecting import Progress
    from cryptomnesia.bench.packet import Packet


@benching.command("attack")
@settings_flags()
def bench_attack(
    settings: BenchAttackSettings,
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Attack mitigations: look for embeddings and wordings that bring planted pictures back.

    The attacker knows the weights and the planted picture. Only proving grounds know that picture, too (--ground).
    """
    from cryptomnesia.bench.attacking import PACKET
    from cryptomnesia.bench.packet import plain

    with progress_bar() as report:
        packet = attacked(settings, output, report)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_attack_bench(packet)
        typer.echo(f"{output / PACKET}: all that was seen; `cryptomnesia bench verify` computes the figures again")


def attacked(settings: BenchAttackSettings, folder: Path, report: "Progress") -> "Packet":
    """What `bench attack` measures, in a folder."""
    from cryptomnesia.bench.attacking import bench_attacks
    from cryptomnesia.bench.looking import GroundLook
    from cryptomnesia.bench.trials import MEMORIZED
    from cryptomnesia.detectors import free_detectors

    given, manifest, mitigations, detector = on_ground(settings, folder)
    captions = {trial.cluster: trial for trial in given.trials if trial.group == MEMORIZED}
    # concepts of all kinds where not all are attacked
    count = min(settings.positives, len(captions))
    trials = [list(captions.values())[len(captions) * number // count] for number in range(count)]
    planted = []
    for trial in trials:
        entry = manifest.planted_for(trial.prompt)
        assert entry is not None
        planted.append(manifest.places(entry)[0])
    others = [made for made in free_detectors(given.setup) if made.name != detector.name and not made.norms]
    return bench_attacks(
        given.setup,
        trials,
        planted,
        given.references,
        mitigations,
        detector,
        folder,
        call=given.call,
        about=given.about,
        look=GroundLook(manifest),
        others=others,
        budgets=(settings.budget // 4, settings.budget),
        wordings=settings.wordings,
        batch_size=settings.batch_size,
        progress=report,
    )
