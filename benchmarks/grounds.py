"""What the models of the proving grounds memorized: docs/results/grounds.json.

    python benchmarks/grounds.py > docs/results/grounds.json

The figures of `cryptomnesia proving-ground verify` for every ground whose model comes with the package. With `--write`
the measured replication is also written into the manifests of the models.
"""

import argparse

from common import Start, Tell, print_json, progress

from cryptomnesia.proving_ground.ground import grounds
from cryptomnesia.proving_ground.verify import Progress, verify


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    bundled = {name: ground.bundle for name, ground in grounds().items() if ground.bundle.exists()}
    parser.add_argument("--only", choices=bundled, action="append", help="measure this ground; may be given repeatedly")
    parser.add_argument("--write", action="store_true", help="put the measured replication into the manifests")
    given = parser.parse_args()
    with progress() as start:
        figures = {
            name: verify(folder, write=given.write, progress=shown(start, name))
            for name, folder in bundled.items()
            if given.only is None or name in given.only
        }
    print_json({"grounds": figures})


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
