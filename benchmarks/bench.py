"""Detectors on the proving grounds: docs/results/bench.json.

    python benchmarks/bench.py --ground scenes --earlier docs/results/bench.json > new.json
    python benchmarks/bench.py --ground drawings --detector drift --detector stability --earlier … > new.json

What `cryptomnesia bench detect --ground GROUND` measures with the ground's own solver at its own guidance scale, by
default of all detectors that work and take at most `MOST` evaluations of the network per image. The packet with every
score is kept in .benchmarks-cache, so an interrupted run goes on where it was. Grounds that are not asked for are
taken from the earlier file, and `made_by` says for each of them which commit measured it.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from common import CACHE, COMMIT, print_json, progress

from cryptomnesia import load_pipeline
from cryptomnesia.bench.detecting import bench
from cryptomnesia.bench.trials import of_ground
from cryptomnesia.cli.benching import REFERENCES, distance
from cryptomnesia.detectors import detector, detector_names
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest

MOST = 5.0
"""Evaluations of the network per image."""
POSITIVES, NEGATIVES = 224, 400


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ground", action="append", required=True, help="ground to measure; may be given repeatedly")
    parser.add_argument("--detector", action="append", help="detector to compare; may be given repeatedly")
    parser.add_argument("--earlier", type=Path, required=True, help="results file with the other grounds")
    given = parser.parse_args()
    earlier = json.loads(given.earlier.read_text(encoding="utf-8"))
    grounds = dict(earlier.get("grounds", {}))
    commits = dict(earlier.get("made_by", {}).get("commits", {}))
    with progress() as start:
        for name in given.ground:
            ground = ground_of(name)
            manifest = Manifest.load(ground.bundle)
            pipe = load_pipeline(str(ground.bundle / "pipeline"), device="cpu")
            manifest.check(pipe)
            call = ground.call(manifest.steps, manifest.guidance)
            setup = Setup.of(pipe, call)
            made = [made for made in map(detector, given.detector or detector_names()) if setup.accepts(made)]
            made = [judge for judge in made if judge.cost(setup) <= MOST]
            bars = {}

            def report(what: str, done: float, total: int, bars: dict = bars, name: str = name) -> None:
                bars.setdefault(what, start(f"{name}: {what}", total))(done)

            references = manifest.control_captions("calibration", REFERENCES)
            packet = bench(
                setup,
                of_ground(manifest, POSITIVES, NEGATIVES, references),
                references,
                made,
                CACHE / f"bench-{name}",
                call=call,
                about={"model": f"the ground {name}"},
                truth=partial(distance, manifest),
                threshold=ground.threshold,
                progress=report,
            )
            grounds[name] = {
                "solver": type(pipe.scheduler).__name__.removesuffix("Scheduler").lower(),
                "guidance": manifest.guidance,
                "methods": packet.methods,
                **packet.figures,
            }
            commits[name] = COMMIT
    print_json({"grounds": grounds}, commits=commits)


if __name__ == "__main__":
    main()
