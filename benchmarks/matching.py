"""Search of a large index, exactly and among candidates: docs/results/matching.json.

    python benchmarks/matching.py > docs/results/matching.json

Pictures: the first `PICTURES` of the bundled model's training stream in which nothing is planted. Queries: `QUERIES`
of them, brighter or darker by a random amount and with grain; `region`: only inside a rectangle, with another picture
around it. `found`: the share of queries whose nearest picture is the one that they were made from. `next_fifty`: the
mean distance of the fifty next pictures, which a match is measured by, among candidates divided by that among all.
`reproduced`: the share of queries that reproduce their picture by the exact search; `reproduced_alike`: the share of
queries for which both searches agree. `seconds`: a match of one query, median over queries with the least and
greatest;
`seconds_each_of_16`: seconds per query where sixteen are matched at once.
"""

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import CACHE, Start, Tell, print_json, progress
from PIL import Image
from torch import Tensor

from cryptomnesia.images import square
from cryptomnesia.matching import ImageIndex, Tiles, candidates
from cryptomnesia.matching.building import FORMAT
from cryptomnesia.matching.shards import Row, Shards, write_json, write_shard
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.concepts import TrainingStream
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest

PICTURES = 200_000
SHARD = 10_000
QUERIES = 32
BATCH = 16
CHANGE = 0.06
"""Standard deviation of the change of brightness, and of the grain of every pixel."""


def main() -> None:
    """Measure and print JSON."""
    with progress() as start:
        figures = measure(CACHE / "matching", start)
    print_json(figures)


def measure(folder: Path, start: Start) -> dict[str, Any]:
    """All figures."""
    tiles, stream = Tiles(), training_stream()
    describe(folder, tiles, stream, start("pictures", PICTURES))
    (folder / candidates.FILE).unlink(missing_ok=True)
    exact = ImageIndex(folder, tiles)
    tell = start("codes", PICTURES)
    began = time.perf_counter()
    candidates.extend(folder, Shards(folder, tiles.shape), lambda done, _total: tell(done))
    coding_seconds = time.perf_counter() - began
    both = {"exact": exact, "candidates": ImageIndex(folder, tiles)}
    names, whole, region, masks = queries(exact, stream)
    return {
        "pictures": len(exact),
        "descriptor_bytes": sum(path.stat().st_size for path in folder.glob("*.npy")),
        "code_bytes": (folder / candidates.FILE).stat().st_size,
        "coding_seconds": coding_seconds,
        "whole": compared(both, names, whole, None, start("whole", 2 * QUERIES)),
        "region": compared(both, names, region, masks, start("region", 2 * QUERIES)),
        "queries": QUERIES,
        "threads": torch.get_num_threads(),
    }


def training_stream() -> TrainingStream:
    """That of the bundled model."""
    ground = ground_of(Manifest.load(BUNDLE).ground)
    return ground.stream(ground.recipe, ground.plant(ground.recipe.seed))


def describe(folder: Path, tiles: Tiles, stream: TrainingStream, tell: Tell) -> None:
    """Write the shards that are not there yet, straight from the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    places = ((index, stream.concept_at(index)) for index in itertools.count())
    ordinary = (index for index, place in places if place is None or not stream.concepts[place].planted)
    for number in range(PICTURES // SHARD):
        places_of_shard = [next(ordinary) for _ in range(SHARD)]
        if not (folder / f"{number:05}.json").exists():
            pictures = torch.stack(
                [square(Image.fromarray(stream[index].image), tiles.side) for index in places_of_shard]
            )
            described = tiles.describe(pictures).half().numpy()
            write_shard(folder / f"{number:05}", described, [Row(f"{index}.png") for index in places_of_shard])
        tell((number + 1) * SHARD)
    about = {"format": FORMAT, "descriptor": tiles.name, "source": "training stream", "skipped": {}, "complete": True}
    write_json(folder / "index.json", about)


def queries(index: ImageIndex, stream: TrainingStream) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Names of pictures, changed copies of them, pictures that hold these copies inside masks only, and the masks."""
    rng = torch.Generator().manual_seed(0)
    names = [index.paths[place] for place in torch.randperm(len(index), generator=rng)[: 2 * QUERIES].tolist()]
    pictures = torch.stack(
        [torch.from_numpy(stream[int(Path(name).stem)].image).permute(2, 0, 1).float() / 255 for name in names]
    )
    brightness = CHANGE * torch.randn(QUERIES, 1, 1, 1, generator=rng)
    grain = CHANGE * torch.randn(QUERIES, *pictures.shape[1:], generator=rng)
    whole = (pictures[:QUERIES] + brightness + grain).clamp(0, 1)
    masks = torch.zeros(QUERIES, *pictures.shape[2:], dtype=torch.bool)
    for mask in masks:
        height, width = torch.randint(24, 41, (2,), generator=rng).tolist()
        top, left = (int(torch.randint(65 - size, (1,), generator=rng)) for size in (height, width))
        mask[top : top + height, left : left + width] = True
    return names[:QUERIES], whole, torch.where(masks[:, None], whole, pictures[QUERIES:]), masks


def compared(
    both: dict[str, ImageIndex], names: list[str], pictures: Tensor, masks: Tensor | None, tell: Tell
) -> dict[str, Any]:
    """Figures of the exact search and of that among candidates, on the same queries."""
    figures: dict[str, Any] = {}
    reproduced, usual = {}, {}
    for number, (kind, index) in enumerate(both.items()):
        seconds, matches = [], []
        for row in range(QUERIES):
            one = slice(row, row + 1)
            began = time.perf_counter()
            matches.append(index.match(pictures[one], masks=None if masks is None else masks[one]))
            seconds.append(time.perf_counter() - began)
            tell(number * QUERIES + row + 1)
        began = time.perf_counter()
        index.match(pictures[:BATCH], masks=None if masks is None else masks[:BATCH])
        figures[kind] = {
            "found": statistics.mean(match.paths == [name] for match, name in zip(matches, names, strict=True)),
            "seconds": {"value": statistics.median(seconds), "least": min(seconds), "greatest": max(seconds)},
            f"seconds_each_of_{BATCH}": (time.perf_counter() - began) / BATCH,
        }
        reproduced[kind] = torch.cat([match.reproduced for match in matches])
        usual[kind] = index.search(pictures, masks=masks, k=51).distances[:, 1:].mean(dim=1)
    longer = usual["candidates"] / usual["exact"]
    alike = reproduced["candidates"] == reproduced["exact"]
    return {
        **figures,
        "next_fifty": {"mean": longer.mean().item(), "greatest": longer.max().item()},
        "reproduced": reproduced["exact"].float().mean().item(),
        "reproduced_alike": alike.float().mean().item(),
    }


if __name__ == "__main__":
    main()
