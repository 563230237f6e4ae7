"""Detectors and localizers on the proving grounds: docs/results/bench.json, and a packet of every score beside it.

    python benchmarks/bench.py --ground scenes > new.json
    python benchmarks/bench.py --ground scenes-full --bundle RUN/bundle > new.json
    python benchmarks/bench.py --ground scenes-lora --bundle RUN/bundle --as "seed 1" > new.json
    python benchmarks/bench.py --ground drawings --maps > new.json
    python benchmarks/bench.py --ground drawings-flow --bundle RUN/bundle --maps --localizer collapse > new.json
    python benchmarks/bench.py --ground scenes --scheduler ddim --most 0 > new.json
    python benchmarks/bench.py --ground drawings --guidance 7.5 --most 0 > new.json
    python benchmarks/bench.py > new.json

What `cryptomnesia bench detect --ground GROUND --most 5` measures with the ground's own solver at its own guidance
scale, on a fine-tune of the detectors `OF_FINE_TUNES`, or with --maps what `cryptomnesia bench localize` measures of
`LOCALIZERS`. The packets are kept in .benchmarks-cache, so an interrupted run goes on where it was. Scores are copied
to docs/results/packets, where `cryptomnesia bench verify` computes every figure again.

Grounds that are not asked for are taken from docs/results/bench.json, or from the file that --earlier names, and
`made_by` says for each of them which commit measured it. `leave_one_ground_out` is computed from the packets of all
grounds with their own solver and guidance: for every ground the detector that is best on grounds of other families
(`scenes…`, `drawings…`), by the smallest of its AUCs against ordinary captions and captions that fix most pixels, and
what it reaches on the one that took no part.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import CACHE, COMMIT, print_json, progress

from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.selection import left_out
from cryptomnesia.cli.benches import detected, mapped
from cryptomnesia.proving_ground.fine_tune import FineTune
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.settings import BenchDetectSettings, BenchLocalizeSettings

MOST = 5.0
"""Evaluations of the network per image."""

OF_FINE_TUNES = [
    "early-detail",
    "combined",
    "drift",
    "guidance-first",
    "guidance-last",
    "guidance-mean",
    "information",
    "overestimation",
    "stability",
    "stability-first",
    "stability-or-drift",
    "guidance-map",
    "score-difference",
    "one-step",
    "settled-detail",
    "base-difference",
]
"""Detectors that are compared on fine-tunes: those that cost nothing, and three that do."""

LOCALIZERS = [
    "collapse",
    "settled-detail",
    "curvature",
    "curvature-difference",
    "curvature-difference-checkpoint",
    "score-difference",
    "score-difference-checkpoint",
    "guidance-map",
    "bright-ending",
    "local-critical-scale",
]
"""Those of the papers, and the two of this library."""

MAPPED = {"positives": 112, "negatives": 100}
"""Images of which maps are made."""

RESULTS, PACKETS = Path("docs/results/bench.json"), Path("docs/results/packets")


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ground", help="ground to measure")
    parser.add_argument("--bundle", type=Path, help="RUN/bundle of a training of the ground")
    parser.add_argument("--as", dest="called", help="what the results call a training that is not the ground's own")
    parser.add_argument("--detector", action="append", default=[], help="detector to compare; may be given repeatedly")
    parser.add_argument("--localizer", action="append", help="with --maps: localizers of the ground's table")
    parser.add_argument("--scheduler", default="own", help="another scheduler than the ground's own")
    parser.add_argument("--guidance", type=float, help="another guidance scale than the ground's own")
    parser.add_argument("--most", type=float, default=MOST, help="evaluations of the network per image, at most")
    parser.add_argument("--maps", action="store_true", help="compare localizers instead of detectors")
    parser.add_argument("--batch-size", type=int, default=16, help="images per call of the pipeline; more for a GPU")
    parser.add_argument("--earlier", type=Path, default=RESULTS, help="results file with the other grounds")
    given = parser.parse_args()
    if given.localizer and not given.maps:
        parser.error("got --localizer without --maps; give both")
    earlier = json.loads(given.earlier.read_text(encoding="utf-8"))
    grounds: dict[str, Any] = dict(earlier.get("grounds", {}))
    commits: dict[str, str] = dict(earlier.get("made_by", {}).get("commits", {}))
    if given.ground is not None:
        of_ground: dict[str, Any] = {
            "ground": given.ground,
            "bundle": given.bundle,
            "scheduler": given.scheduler,
            "guidance": given.guidance,
            "batch_size": given.batch_size,
        }
        changed = [] if given.called is None else [given.called]
        changed += [] if given.scheduler == "own" else [given.scheduler]
        changed += [] if given.guidance is None else [f"guidance {given.guidance:g}"]
        name = ", ".join([given.ground, *changed])
        folder = CACHE / f"bench-{_file(name)}{'-maps' * given.maps}"
        with progress() as start:
            bars: dict[str, Any] = {}

            def report(what: str, done: float, total: int) -> None:
                if what not in bars:
                    bars[what] = start(f"{name}: {what}", total)
                bars[what](done)

            if given.maps:
                localizing = BenchLocalizeSettings(**of_ground, **MAPPED, localizer=given.localizer or LOCALIZERS)
                found: Any = mapped(localizing, folder, report)
            else:
                tuned = OF_FINE_TUNES if isinstance(ground_of(given.ground), FineTune) else []
                detecting = BenchDetectSettings(**of_ground, detector=given.detector or tuned, most=given.most)
                found = detected(detecting, folder, report)
        measured = {"methods": found.methods, **found.figures}
        if torch.cuda.is_available():
            measured["device"] = torch.cuda.get_device_name()
        ground = grounds.setdefault(name, {})
        ground["solver"] = str(found.about["fingerprint"]["scheduler"]).removesuffix("Scheduler").lower()
        ground["guidance"] = float(found.about["fingerprint"]["guidance"])
        if given.maps:
            ground["maps"] = measured
            commits[f"{name}, maps"] = COMMIT
        else:
            ground.pop("device", None)
            ground |= measured
            commits[name] = COMMIT
            PACKETS.mkdir(exist_ok=True)
            found.save(PACKETS / f"{_file(name)}.json.xz")
    own = {name: PACKETS / f"{name}.json.xz" for name in grounds if ", " not in name}
    packets = {name: Packet.load(path) for name, path in own.items() if path.exists()}
    chosen = left_out(packets, {name: name.split("-")[0] for name in packets})
    figures = {"grounds": grounds, "leave_one_ground_out": chosen}
    # the packets have more digits
    print_json(_rounded(figures), commits=commits)


def _rounded(value: Any) -> Any:
    """JSON values with six digits of every number that is not whole; None for a dictionary that holds None alone."""
    if isinstance(value, dict):
        found = {key: _rounded(item) for key, item in value.items()}
        return found if any(item is not None for item in found.values()) else None
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _file(name: str) -> str:
    """A part of the name of a file."""
    return name.replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    main()
