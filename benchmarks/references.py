"""How often references are reported that are not memorized, and how often memorized ones: docs/results/references.json.

    python benchmarks/references.py > docs/results/references.json

Sets of ordinary references are drawn from the 450 runs of the bundled calibration and 300 further ordinary captions of
the bundled model, with and without three memorized captions (verbatim, top rung) among them. `clean`: the share of sets
without memorized captions in which any reference is reported. `some` and `all`: the share of sets with three in which
some or all of the three are reported. `falsely`: the mean number of ordinary references reported in those sets. The cap
and the level of `cryptomnesia.calibration.outliers` were chosen on sets from the same runs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from common import print_json, progress

from cryptomnesia import Calibration, load_pipeline
from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.outliers import served
from cryptomnesia.calibration.stored import resolved
from cryptomnesia.detectors import Detector
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.trajectory import joined

FURTHER = 300
SIZES = (102, 150, 300)
MEMORIZED = 3
CLEAN_SETS, MIXED_SETS = 200, 100


def main() -> None:
    """Measure and print JSON."""
    pipe = load_pipeline("bundled", device="cpu")
    calibration = resolved(None, pipe)
    manifest = Manifest.load(BUNDLE)
    planted = [
        entry.captions[0] for entry in manifest.entries if entry.kind == "verbatim" and entry.exposures == manifest.top
    ]
    captions = [*manifest.control_captions("evaluation", FURTHER), *planted]
    seeds = range(3_000_000, 3_000_000 + len(captions))
    with progress() as start:
        batches = generate(
            Setup(pipe, calibration.sampling),
            captions,
            seeds,
            decode=False,
            progress=start("images", len(captions)),
        )
        made = joined([batch.trajectory.bare() for batch in batches])
    # the bundled calibration has signals as well, which are not used
    runs = joined([replace(calibration.runs, signals={}), made])
    pool = replace(calibration, runs=runs, maps={}, captions=Captions.of([]))
    ordinary = len(calibration) + FURTHER
    detectors = list(served(pool))
    unguided = [detector for detector in detectors if "guidance" not in detector.requires]
    figures = {
        name: {str(size): measured(pool, ordinary, size, judges) for size in SIZES}
        for name, judges in {"all": detectors, "unguided": unguided}.items()
    }
    print_json(
        {"ordinary": ordinary, "memorized": len(planted), "detectors": [found.name for found in detectors], **figures},
        scheduler=type(pipe.scheduler).__name__,
    )


def measured(pool: Calibration, ordinary: int, size: int, detectors: Sequence[Detector]) -> dict[str, float]:
    """What is reported in sets of `size` references, whose last ones are the memorized ones.

    Args:
        pool: all runs, the ordinary ones first.
        ordinary: the number of ordinary runs.
        size: of a set.
        detectors: that judge together.
    """
    draw = np.random.default_rng(size)

    def reported(memorized: int) -> list[int]:
        rows = [
            *draw.choice(ordinary, size - memorized, replace=False),
            *(ordinary + draw.choice(len(pool) - ordinary, memorized, replace=False)),
        ]
        drawn: Any = replace(pool, runs=pool.runs.rows([int(row) for row in rows]))
        return [row.number for row in drawn.suspicious(detectors)]

    clean = [reported(0) for _ in range(CLEAN_SETS)]
    mixed = [reported(MEMORIZED) for _ in range(MIXED_SETS)]
    found = np.array([sum(number >= size - MEMORIZED for number in numbers) for numbers in mixed])
    return {
        "clean": float(np.mean([bool(numbers) for numbers in clean])),
        "some": float((found > 0).mean()),
        "all": float((found == MEMORIZED).mean()),
        "falsely": float(np.mean([len(numbers) for numbers in mixed] - found)),
    }


if __name__ == "__main__":
    main()
