"""`bench attack`: can an attacker bring planted pictures back under a mitigation?"""

import json

import typer

from cryptomnesia.cli.benching import AsJson, Output, Workers, benching
from cryptomnesia.cli.common import Engine
from cryptomnesia.cli.options import settings_flags
from cryptomnesia.report.bench_tables import print_attack_bench
from cryptomnesia.report.console import progress_bar
from cryptomnesia.settings import BenchAttackSettings


@benching.command("attack")
@settings_flags()
def bench_attack(
    settings: BenchAttackSettings,
    output: Output,
    engine: Engine = "local",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Attack mitigations: look for embeddings and wordings that bring planted pictures back.

    The attacker knows the weights and the planted picture. Only proving grounds know that picture, too (--ground).
    """
    from cryptomnesia.bench.attacking import PACKET
    from cryptomnesia.bench.packet import plain
    from cryptomnesia.cli.benches import attacked

    with progress_bar() as report:
        packet = attacked(settings, output, report, engine=engine, workers=workers)
    if as_json:
        typer.echo(json.dumps(plain(packet.figures), indent=2))
    else:
        print_attack_bench(packet)
        typer.echo(f"{output / PACKET}: all that was seen; `cryptomnesia bench verify` computes the figures again")
