"""What the models of the proving grounds memorized: docs/results/grounds.json.

    python benchmarks/grounds.py --earlier docs/results/grounds.json > new.json
    python benchmarks/grounds.py --only drawings --earlier docs/results/grounds.json > new.json
    python benchmarks/grounds.py --also run/bundle --earlier docs/results/grounds.json > new.json

The figures of `cryptomnesia proving-ground verify` for every ground whose model comes with the package. The second
command measures one of them, and the third a ground whose model does not come with the package. All other grounds are
taken from the earlier file, and `made_by` says for every ground which commit made its figures. With
`--without-generating`, only those figures are measured again that need no generated picture, in seconds;
`made_by.without_generating` names the commit of these. With `--write` the measured replication is also written into
the manifests of the models.
"""

import argparse
import json
from pathlib import Path

from common import COMMIT, Start, Tell, print_json, progress

from cryptomnesia.proving_ground.denoising import Exposures
from cryptomnesia.proving_ground.ground import grounds
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.verify import Model, Progress, verify, without_generating


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    bundled = {name: ground.bundle for name, ground in grounds().items() if ground.bundle.exists()}
    parser.add_argument("--only", choices=bundled, action="append", help="measure this ground; may be given repeatedly")
    parser.add_argument("--also", type=Path, action="append", help="bundle that `train` made; nothing else is measured")
    parser.add_argument("--earlier", type=Path, required=True, help="results file with the other grounds")
    parser.add_argument("--without-generating", action="store_true", help="measure what needs no generated picture")
    parser.add_argument("--write", action="store_true", help="put the measured replication into the manifests")
    given = parser.parse_args()
    also = {Manifest.load(folder).ground: folder for folder in given.also or ()}
    measured = {**{name: bundled[name] for name in given.only or (() if also else bundled)}, **also}
    earlier = json.loads(given.earlier.read_text(encoding="utf-8"))
    figures = dict(earlier.get("grounds", {}))
    commits = dict(earlier.get("made_by", {}).get("commits", {}))
    later = dict(earlier.get("made_by", {}).get("without_generating", {}))
    with progress() as start:
        for name, folder in measured.items():
            if given.without_generating:
                figures[name] |= without_generating(Model.load(folder), Exposures.load(folder))
                later[name] = COMMIT
            else:
                figures[name] = verify(folder, write=given.write, progress=shown(start, name))
                commits[name] = COMMIT
                later.pop(name, None)
    print_json({"grounds": figures}, commits=commits, without_generating=later)


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
