"""Does the published filter help score differences? docs/results/filtered.json.

    python benchmarks/bench.py --ground scenes --maps > new.json
    python benchmarks/bench.py --ground drawings --maps > new.json
    python benchmarks/filtered.py > docs/results/filtered.json

The maps `score-difference` and `score-difference-checkpoint` of these benches, which are kept in .benchmarks-cache with
the reference maps that fix thresholds, are averaged over windows. A window is a share of the side of the map; 13/64 is
the published one. Figures are those of `cryptomnesia bench localize`.
"""

from typing import Any

from common import CACHE, print_json

from cryptomnesia.bench.localizing import MAPS
from cryptomnesia.bench.map_packet import MapPacket
from cryptomnesia.localizers.score_difference import PUBLISHED_WINDOW, averaged

GROUNDS = ("scenes", "drawings")
LOCALIZERS = ("score-difference", "score-difference-checkpoint")
WINDOWS = (0.0, PUBLISHED_WINDOW, 2 * PUBLISHED_WINDOW)


def main() -> None:
    """Compute and print JSON."""
    print_json({ground: measure(ground) for ground in GROUNDS}, windows=WINDOWS)


def measure(ground: str) -> dict[str, Any]:
    """Localizer → one block per window."""
    packet = MapPacket.load(CACHE / f"bench-{ground}-maps" / MAPS)
    names = {f"{name} {number}": (name, window) for name in LOCALIZERS for number, window in enumerate(WINDOWS)}
    maps = {key: averaged(packet.tensors[f"map/{name}"], window) for key, (name, window) in names.items()}
    found = MapPacket.of(
        packet.about,
        {key: packet.methods[name] for key, (name, _) in names.items()},
        packet.rows,
        {**{f"map/{key}": values for key, values in maps.items()}, "mask": packet.tensors["mask"]},
    ).figures
    keys = ("iou", "oracle_iou", "marked")
    return {
        name: [
            {key: found["localizers"][f"{name} {number}"].get(key) for key in keys} for number in range(len(WINDOWS))
        ]
        for name in LOCALIZERS
    }


if __name__ == "__main__":
    main()
