"""Every mitigation on the same pictures of every ground: docs/results/mitigation.json.

    python benchmarks/mitigation.py --ground GROUND [--bundle RUN/bundle] [--guidance W] > docs/results/mitigation.json
    python benchmarks/mitigation.py --ground GROUND --mitigation NAME --add > docs/results/mitigation.json
    python benchmarks/mitigation.py --ground GROUND --attack > docs/results/mitigation.json

Makes about 112 pictures of the ground's planted captions again under every mitigation, as `cryptomnesia bench mitigate`
does; --mitigation leaves others out, and with --add they are taken from the packet of an earlier run, whose untouched
pictures have to be the same. With --attack the mitigations are attacked, as `cryptomnesia bench attack` does,
and the figures are in the block `attack`. The blocks `fidelity` and `quality` put together what the grounds say of
these: the shares of captions that pictures show, and how sure the classifier is and the Fréchet distance in its
features. What is seen in every picture is copied to docs/results/packets, where
`cryptomnesia bench verify` computes every figure again. Pictures are kept in .benchmarks-cache, so an interrupted run
goes on where it was. Grounds that are not asked for are taken from docs/results/mitigation.json, or from the file that
--earlier names.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import CACHE, COMMIT, print_json, progress

from cryptomnesia.bench.attack_figures import figures_of as attack_figures
from cryptomnesia.bench.mitigation_figures import UNTOUCHED
from cryptomnesia.bench.mitigation_figures import figures_of as mitigation_figures
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.trials import MEMORIZED
from cryptomnesia.cli.benches import attacked, mitigated
from cryptomnesia.settings import BenchAttackSettings, BenchMitigateSettings

RESULTS, PACKETS = Path("docs/results/mitigation.json"), Path("docs/results/packets")


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ground", required=True, help="ground to measure")
    parser.add_argument("--bundle", type=Path, help="RUN/bundle of a training of the ground")
    parser.add_argument("--guidance", type=float, help="another guidance than the ground's own")
    parser.add_argument("--scheduler", help="another solver than the ground's own")
    parser.add_argument("--mitigation", action="append", default=[], help="mitigation; may be given repeatedly")
    parser.add_argument("--add", action="store_true", help="keep what the ground's packet says of other mitigations")
    parser.add_argument("--attack", action="store_true", help="attack the mitigations")
    parser.add_argument("--positives", type=int, help="images of planted captions, about, or with --attack captions")
    parser.add_argument("--negatives", type=int, default=200, help="images of ordinary captions")
    parser.add_argument("--earlier", type=Path, default=RESULTS, help="results of the other grounds")
    given = parser.parse_args()
    earlier: dict[str, Any] = json.loads(given.earlier.read_text(encoding="utf-8")) if given.earlier.exists() else {}
    commits: dict[str, str] = earlier.get("made_by", {}).get("commits", {})
    grounds: dict[str, Any] = earlier.get("grounds", {})
    regime = [f"guidance {given.guidance:g}"] if given.guidance is not None else []
    name = ", ".join([given.ground, *regime, *([given.scheduler] if given.scheduler else [])])
    kind = "attack" if given.attack else "mitigate"
    folder = CACHE / f"{kind}-{name.replace(', ', '-').replace(' ', '-')}"
    options: dict[str, Any] = {"ground": given.ground, "bundle": given.bundle, "mitigation": given.mitigation}
    options |= {} if given.attack else {"negatives": given.negatives}
    options |= {} if given.positives is None else {"positives": given.positives}
    options |= {key: getattr(given, key) for key in ("guidance", "scheduler") if getattr(given, key) is not None}
    with progress() as start:
        bars: dict[str, Any] = {}

        def report(what: str, done: float, total: int) -> None:
            bars[what] = bars.get(what) or start(f"{name}: {what}", total)
            bars[what](done)

        if given.attack:
            found = attacked(BenchAttackSettings(**options), folder, report)
        else:
            found = mitigated(BenchMitigateSettings(**options), folder, report)
    PACKETS.mkdir(parents=True, exist_ok=True)
    kept = PACKETS / f"{folder.name}.json.xz"
    named = f"{name}, attack" if given.attack else name
    keys = [named]
    if given.add:
        keys = [f"{named}, {method}" for method in found.methods]
        found = _added(Packet.load(kept), found, attack_figures if given.attack else mitigation_figures)
    found.save(kept)
    measured = {
        "solver": str(found.about["fingerprint"]["scheduler"]).removesuffix("Scheduler").lower(),
        "guidance": float(found.about["fingerprint"]["guidance"]),
        "methods": found.methods,
        **({} if given.attack else {"frechet": found.about["frechet"]}),
        **found.figures,
        **({"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }
    attack: dict[str, Any] = earlier.get("attack", {})
    (attack if given.attack else grounds)[name] = measured
    if not given.add:
        # what was added to the earlier packet is no longer in it
        commits = {key: value for key, value in commits.items() if not _of_method(key, named, found)}
    command = " ".join(["python", "benchmarks/mitigation.py", *_shown(sys.argv[1:])])
    commands = {key: value for key, value in earlier.get("made_by", {}).get("commands", {}).items() if key in commits}
    figures = {"grounds": grounds, "fidelity": _fidelity(grounds), "quality": _quality(grounds), "attack": attack}
    print_json(
        figures,
        commits={**commits, **dict.fromkeys(keys, COMMIT)},
        commands={**commands, **dict.fromkeys(keys, command)},
    )


def _of_method(key: str, named: str, found: Packet) -> bool:
    """Whether a key of `made_by` is that of one mitigation that was added to a ground."""
    return key in {f"{named}, {method}" for method in found.methods}


def _added(earlier: Packet, found: Packet, figures_of: Callable[..., dict[str, Any]]) -> Packet:
    """The packet of an earlier run with the mitigations of this one, which replace those of the same name.

    Raises:
        SystemExit: if the two do not have the same untouched pictures.
    """
    rows = []
    for before, now in zip(earlier.rows, found.rows, strict=True):
        if _same(before) != _same(now):
            raise SystemExit(f"{now['prompt']!r}, seed {now['seed']}, is not the same picture as in the earlier packet")
        rows.append({**now, "pictures": {**before["pictures"], **now["pictures"]}})
    methods = {**earlier.methods, **found.methods}
    about = dict(found.about)
    if "frechet" in about:
        about["frechet"] = {**earlier.about["frechet"], **about["frechet"]}
    return Packet(about, methods, rows, figures_of(rows, [UNTOUCHED, *methods]))


def _same(row: dict[str, Any]) -> str:
    """What must not differ between two runs: the image and what is seen in it untouched."""
    untouched = {key: value for key, value in row["pictures"][UNTOUCHED].items() if key != "seconds"}
    return json.dumps({**row, "pictures": untouched}, sort_keys=True)


def _fidelity(grounds: dict[str, Any]) -> dict[str, Any]:
    """Ground → mitigation, or group of captions without a memory → the shares of captions that pictures show."""
    return {
        name: {
            kind: {what: found[what] for what in ("shown", "recognized")}
            for kind, found in {**measured["mitigations"], **measured["ordinary"]}.items()
        }
        for name, measured in grounds.items()
    }


def _quality(grounds: dict[str, Any]) -> dict[str, Any]:
    """Ground → mitigation → confidence, and Fréchet distance of pictures of memorized captions.

    Pictures of captions without a memory, as they are, stand beside the mitigations, by the group of the captions.
    """
    return {
        name: {
            **{
                kind: {"confidence": found["confidence"], "frechet": measured["frechet"][kind].get(MEMORIZED)}
                for kind, found in measured["mitigations"].items()
            },
            **{
                group: {"confidence": found["confidence"], "frechet": measured["frechet"][UNTOUCHED].get(group)}
                for group, found in measured["ordinary"].items()
            },
        }
        for name, measured in grounds.items()
    }


def _shown(options: list[str]) -> list[str]:
    """The options of this run, without the folder of a training and the file of earlier results."""
    shown = ["RUN/bundle" if before == "--bundle" else option for before, option in pairwise(["", *options])]
    hidden = {place + add for place, option in enumerate(shown) if option == "--earlier" for add in (0, 1)}
    return [option for place, option in enumerate(shown) if place not in hidden]


if __name__ == "__main__":
    main()
