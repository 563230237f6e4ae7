"""Does the unconditional branch know the planted pictures? docs/results/baseline.json.

    python benchmarks/baseline.py > docs/results/baseline.json

A map that is compared with the unconditional branch needs one that knows the picture less well than the caption does.
`caption-gap` measures that, for about 100 pictures of planted captions, 100 of ordinary ones, and hard negatives:

- `held`: the share of pictures with a gap of 0 or below: both branches hold them equally, or neither does, or the
  unconditional branch holds them more firmly.
- `gap`: the median gap, in log σ; `caption` and `unconditional`: the medians of both branches' log σ_c.
- `pictures`: their number. Of planted captions only pictures that reproduce are counted.
"""

from typing import Any

import numpy as np
import torch
from common import Start, print_json, progress

from cryptomnesia import load_pipeline
from cryptomnesia.bench.trials import MEMORIZED, of_ground
from cryptomnesia.cli.benching import distance
from cryptomnesia.detectors import detector
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.tracing.generation import generate

GROUNDS = ("scenes", "drawings")
PICTURES = 100


def main() -> None:
    """Measure and print JSON."""
    with progress() as start:
        print_json({name: measure(name, start) for name in GROUNDS})


def measure(name: str, start: Start) -> dict[str, Any]:
    """The figures of a ground, by the group of the pictures."""
    ground = ground_of(name)
    manifest = Manifest.load(ground.bundle)
    pipe = load_pipeline(str(ground.bundle / "pipeline"), device="cpu")
    setup = Setup.of(pipe, ground.call(manifest.steps, manifest.guidance))
    scale, gap = detector("critical-scale", setup), detector("caption-gap", setup)
    trials = of_ground(manifest, PICTURES, PICTURES)
    scales, gaps, copied = [], [], []
    for batch in generate(
        setup,
        [trial.prompt for trial in trials],
        [trial.seed for trial in trials],
        batch_size=16,
        signals=(*scale.signals, *gap.signals),
        progress=start(name, len(trials)),
    ):
        scales.append(batch.trajectory.signals[scale.name])
        gaps.append(batch.trajectory.signals[gap.name])
        for image in batch.images:
            trial = trials[len(copied)]
            copied.append(trial.group == MEMORIZED and distance(manifest, trial, image) <= ground.threshold)
    of_caption, difference = torch.cat(scales).numpy(), torch.cat(gaps).numpy()
    found = {}
    for group in dict.fromkeys(trial.group for trial in trials):
        rows = np.array([trial.group == group for trial in trials]) & (np.array(copied) | (group != MEMORIZED))
        found[group] = {
            "held": float((difference[rows] <= 0).mean()),
            "gap": float(np.median(difference[rows])),
            "caption": float(np.median(of_caption[rows])),
            "unconditional": float(np.median((of_caption - difference)[rows])),
            "pictures": int(rows.sum()),
        }
    return found


if __name__ == "__main__":
    main()
