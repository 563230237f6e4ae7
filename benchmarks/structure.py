"""The cut-off of the structural criterion, from training pictures alone: docs/results/structure.json.

    python benchmarks/structure.py > docs/results/structure.json

Of every ground's planted pictures on the top rung, the similarity of edges with pictures that are no copies:

- `others`: ordinary pictures of the ground. Their 99.9% quantile, rounded up to hundredths, is its `structure`.
- `own_caption`: fresh drawings of the planted picture's own caption. The share at or above the cut-off is what a
  mitigation leaves that makes a new picture of the caption.

And with copies that were altered, the smallest of every kind: `inverted`; `faded` to 15% of the contrast; with the
`colours` exchanged; and `moved` by one pixel.
"""

import math
from typing import Any

import numpy as np
from common import Start, print_json, progress

from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import Ground, ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.recognizer import ordinary
from cryptomnesia.proving_ground.structure import structural_similarity

GROUNDS = ("scenes", "drawings")
PICTURES, FRESH = 1_000, 60
FIRST, _KEY = 10_000_000, 77


def main() -> None:
    """Measure and print JSON."""
    with progress() as start:
        print_json({name: measure(ground_of(name), start) for name in GROUNDS})


def measure(ground: Ground, start: Start) -> dict[str, Any]:
    """The figures of a ground."""
    manifest = Manifest.load(ground.bundle)
    concepts = {concept.id: concept for concept in ground.plant(manifest.seed)}
    entries = [entry for entry in manifest.counted if entry.exposures == manifest.top]
    others = np.stack([picture for picture, _ in ordinary(ground, manifest.seed, FIRST, PICTURES)])
    tell = start(ground.name, len(entries))
    unlike, fresh = [], []
    altered: dict[str, list[float]] = {}
    for number, entry in enumerate(entries):
        places = manifest.places(entry)
        unlike.append(structural_similarity(others, places))
        drawn = [concepts[entry.id].fresh(Draws(manifest.seed, _KEY, index)) for index in range(FRESH)]
        fresh.append(structural_similarity(np.stack(drawn), places))
        picture = places[0].image / 255 if places[0].image.dtype == np.uint8 else places[0].image
        for kind, other in {
            "inverted": 1 - picture,
            "faded": 0.5 + 0.15 * (picture - 0.5),
            "colours": picture[..., [1, 2, 0]],
            "moved": np.roll(picture, 1, axis=1),
        }.items():
            altered.setdefault(kind, []).append(structural_similarity(other[None], places).item())
        tell(number + 1)
    found = math.ceil(100 * np.quantile(unlike, 0.999)) / 100
    return {
        "structure": found,
        "others": {f"{share:g}": float(np.quantile(unlike, share)) for share in (0.5, 0.99, 0.999)},
        "own_caption": {
            "median": float(np.median(fresh)),
            "at_or_above": float((np.array(fresh) >= found).mean()),
        },
        "altered": {kind: min(values) for kind, values in altered.items()},
        "counts": {"planted": len(entries), "others": PICTURES, "own_caption": FRESH},
    }


if __name__ == "__main__":
    main()
