"""What the models of the proving grounds memorized: docs/results/grounds.json.

    python benchmarks/grounds.py > docs/results/grounds.json
    python benchmarks/grounds.py --only pixels --earlier docs/results/grounds.json > new.json
    python benchmarks/grounds.py --also run/bundle --earlier docs/results/grounds.json > new.json

The figures of `cryptomnesia proving-ground verify` for every ground whose model comes with the package. The second
command measures one ground again and takes the others from an earlier file; the third adds one whose model does not
come with the package. `made_by` then says for every ground which commit made its figures. With `--write` the measured
replication is also written into the manifests of the models.
"""

import argparse
import json
from pathlib import Path

from common import COMMIT, Start, Tell, print_json, progress

from cryptomnesia.proving_ground.ground import grounds
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.verify import Progress, verify


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    bundled = {name: ground.bundle for name, ground in grounds().items() if ground.bundle.exists()}
    parser.add_argument("--only", choices=bundled, action="append", help="measure this ground; may be given repeatedly")
    parser.add_argument("--also", type=Path, action="append", help="bundle that `train` made; nothing else is measured")
    parser.add_argument("--earlier", type=Path, help="results file with the figures of the other grounds")
    parser.add_argument("--write", action="store_true", help="put the measured replication into the manifests")
    given = parser.parse_args()
    also = {Manifest.load(folder).ground: folder for folder in given.also or ()}
    measured = {**{name: bundled[name] for name in given.only or (() if also else bundled)}, **also}
    if not set(bundled) <= set(measured) and given.earlier is None:
        parser.error("--only and --also need --earlier, for the other grounds")
    earlier = {} if given.earlier is None else json.loads(given.earlier.read_text(encoding="utf-8"))
    figures = dict(earlier.get("grounds", {}))
    before = earlier.get("made_by", {})
    commits = {name: before.get("commits", {}).get(name, before.get("commit")) for name in figures}
    with progress() as start:
        for name, folder in measured.items():
            figures[name] = verify(folder, write=given.write, progress=shown(start, name))
            commits[name] = COMMIT
    print_json({"grounds": figures}, commits=commits)


def shown(start: Start, name: str) -> Progress:
    """A progress callback of `verify` that shows bars."""
    bars: dict[str, Tell] = {}

    def report(what: str, done: float, total: int) -> None:
        if what not in bars:
            bars[what] = start(f"{name}: {what}", total)
        bars[what](done)

    return report


if __name__ == "__main__":
    main()
