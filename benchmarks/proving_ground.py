"""What the bundled model memorized: docs/results/proving_ground.json.

    python benchmarks/proving_ground.py > docs/results/proving_ground.json

The figures of `cryptomnesia proving-ground verify`, which docs/proving_ground.md explains. With `--write` the measured
replication is also written into the manifest of the bundled model.
"""

import argparse

from common import Start, Tell, print_json, progress

from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.verify import Progress, verify


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the measured replication into the manifest")
    write = parser.parse_args().write
    with progress() as start:
        figures = verify(BUNDLE, write=write, progress=shown(start))
    print_json(figures, scheduler=figures["scheduler"])


def shown(start: Start) -> Progress:
    """A progress callback of `verify` that shows bars."""
    bars: dict[str, Tell] = {}

    def report(what: str, done: float, total: int) -> None:
        if what not in bars:
            bars[what] = start(what, total)
        bars[what](done)

    return report


if __name__ == "__main__":
    main()
