"""Search of a very large index, beside plain faiss: docs/results/matching.json.

    python benchmarks/matching.py > docs/results/matching.json

`--pictures N` takes another number than ten million. It needs faiss, and seven gigabytes of memory and disk.

**Pictures.** `BASES` are pictures of the bundled model's training stream in which nothing is planted. The others are
variations of them, made at the size of the descriptor (`varied.py`). No descriptors of these are stored: the second
stage of a search makes those of its candidates again, and what that takes is replaced by what it takes to read as
many from the shards of the bases, of which there are as many as ten million pictures would have.

**Queries.** `QUERIES` of all pictures, brighter or darker by a random amount and with grain; `region`: only inside a
rectangle, with another picture around it.

**Methods.** `codes` is the first stage of cryptomnesia. `pq` searches the same codes as faiss does. `ivf-pq` are
vectors of 128 numbers (PCA with a rotation) in lists, coded in 64 bytes; the number is that of the lists that are
looked into. `flat` compares all descriptors: its seconds are those of `FLAT` pictures, multiplied. Plain faiss takes no
masks, so it searches for the whole query in `region`, too. Figures of a method:

- `first`: share of queries whose first candidate is the picture that they were made from;
- `source`: share for which it is the nearest of the candidates by the exact distance;
- `nearest`: share for which the nearest of all pictures by the exact distance is a candidate;
- `next_fifty`: share of the fifty next pictures by the exact distance that are candidates;
- `one` and `each_of_16`: seconds per query, for one query and for sixteen at once;
- `build_seconds`, without what it takes to describe pictures, and `bytes`.

**Rate.** `sum`: seconds in which PyTorch sums the codes as 64-bit numbers, with as many threads; `of_sum_rate`: these
divided by the seconds of the first stage, and of both stages, for one query. `compare`: the second stage;
`compare_from_disk`: when its files are not in memory.

**Matches.** Seconds of a match of one query among all pictures, both stages and null together, for queries that are
near enough to a picture to need a null; `again`: when it has been matched before, and what is kept of the null is
known. `real`: matches among the bases only, by an exact search and by candidates: `reproduced_alike` is the share of
queries for which both agree on whether their picture is reproduced, `next_fifty` the mean distance of the fifty next
pictures among candidates divided by that among all.

All seconds are medians with the least and the greatest.
"""

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import torch
from common import CACHE, Start, Tell, print_json, progress
from PIL import Image
from torch import Tensor
from varied import Varied

from cryptomnesia.images import square
from cryptomnesia.matching import ImageIndex, Tiles, candidates
from cryptomnesia.matching.building import FORMAT
from cryptomnesia.matching.distances import counted, distances_between
from cryptomnesia.matching.reproduction import reproduction
from cryptomnesia.matching.search import IN_CACHE, Search
from cryptomnesia.matching.shards import Row, Shards, spread, write_json, write_shard
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.concepts import TrainingStream
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest

BASES = 200_000
SHARD = 400
QUERIES = 32
MATCHED = 8
BATCH = 16
ROUNDS = 9
CHANGE = 0.06
"""Standard deviation of the change of brightness, and of the grain of every pixel."""

FLAT = 50_000
LEARNED = 50_000
"""Pictures that the index of lists learns from."""

PROBED = (1, 16, 128)
"""Lists that are looked into."""

NEXT = 50
"""Next pictures, which a match is measured by."""

SIDE = 32
TILES = Tiles(SIDE)

Asked = dict[str, tuple[Tensor, Tensor]]
"""Kind of queries → their descriptors and weights, (QUERIES, T, P) each."""

Method = Callable[[Tensor, Tensor, int], Tensor]
"""From descriptors and weights (B, T, P) of queries and a number k to the places (B, k) of candidates."""


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description="Measure the search of a very large index.")
    parser.add_argument("--pictures", type=int, default=10_000_000, help="of the index (default: ten million)")
    pictures = parser.parse_args().pictures
    with progress() as start:
        figures = measure(pictures, start)
    print_json(figures)


def measure(pictures: int, start: Start) -> dict[str, Any]:
    """All figures."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    bases = CACHE / "matching"
    describe(bases, start("bases", BASES))
    shards = Shards(bases, TILES.shape)
    varied = Varied(torch.cat([pixels(values) for _, values in shards.chunks()]), pictures)
    sources, asked = queries(varied)
    folder = CACHE / "matching-codes"
    lists, truth, build = built(folder, varied, asked, start("codes", pictures))
    first_stage = candidates.Candidates(folder, TILES.shape, pictures)
    plain: Any = faiss.read_index(str(folder / candidates.FILE))
    found = {
        "codes": first_stage.nearest,
        "pq": partial(by_faiss, plain),
        **{f"ivf-pq {probed}": partial(by_faiss, lists, probed=probed) for probed in PROBED},
    }
    search = Search(varied, first_stage)
    methods = {name: recall(search, method, sources, asked, truth) for name, method in found.items()}
    codes = torch.from_numpy(faiss.rev_swig_ptr(plain.codes.data(), plain.codes.size())).view(torch.int64)
    seconds = timed({"sum": lambda _: codes.sum(), **{name: one(method, asked) for name, method in found.items()}})
    of_batch = timed({name: batch(method, asked) for name, method in found.items()}, BATCH)
    for name, figures in methods.items():
        figures |= build[name.split()[0]] | {"one": seconds[name], f"each_of_{BATCH}": of_batch[name]}
    compare, compare_from_disk, read = second_stage(shards, asked["whole"])
    total = seconds["sum"]["value"]
    return {
        "pictures": pictures,
        "bases": BASES,
        "queries": QUERIES,
        "threads": torch.get_num_threads(),
        "code_bytes": plain.codes.size(),
        "sum": seconds["sum"],
        "compare": compare,
        "compare_from_disk": compare_from_disk,
        "of_sum_rate": {
            "first": total / seconds["codes"]["value"],
            "both": total / (seconds["codes"]["value"] + compare["value"]),
        },
        "methods": {**methods, "flat": flat(varied, asked["whole"])},
        "match": {kind: matched(search, *values, read) for kind, values in asked.items()},
        "real": real(bases, start),
    }


def training_stream() -> TrainingStream:
    """That of the bundled model."""
    ground = ground_of(Manifest.load(BUNDLE).ground)
    return ground.stream(ground.recipe, ground.plant(ground.recipe.seed))


def describe(folder: Path, tell: Tell) -> None:
    """Write the shards of the bases that are not there yet, straight from the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = training_stream()
    places = ((index, stream.concept_at(index)) for index in itertools.count())
    ordinary = (index for index, place in places if place is None or not stream.concepts[place].planted)
    for number in range(BASES // SHARD):
        places_of_shard = [next(ordinary) for _ in range(SHARD)]
        if not (folder / f"{number:05}.json").exists():
            pictures = torch.stack([square(Image.fromarray(stream[index].image), SIDE) for index in places_of_shard])
            described = TILES.describe(pictures).half().numpy()
            write_shard(folder / f"{number:05}", described, [Row(f"{index}.png") for index in places_of_shard])
        tell((number + 1) * SHARD)
    about = {"format": FORMAT, "descriptor": TILES.name, "source": "training stream", "skipped": {}, "complete": True}
    write_json(folder / "index.json", about)


def pixels(described: Tensor) -> Tensor:
    """The pictures (n, 3, SIDE, SIDE) uint8 of descriptors (n, T, P)."""
    across = TILES.across
    tiles = described.view(-1, across, across, 3, SIDE // across, SIDE // across)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, SIDE, SIDE).mul(255).round().byte()


def queries(varied: Varied) -> tuple[Tensor, Asked]:
    """The places of pictures, and queries made from these by kind: descriptors and weights, (QUERIES, T, P) each."""
    rng = torch.Generator().manual_seed(0)
    places = torch.randint(len(varied), (2 * QUERIES,), generator=rng)
    pictures = varied.draw(places)
    whole, masks = changed(pictures[:QUERIES], rng)
    region = torch.where(masks[:, None], whole, pictures[QUERIES:])
    asked = {
        "whole": (TILES.describe(whole), torch.ones(QUERIES, *TILES.shape)),
        "region": (TILES.describe(region), counted(TILES.weights(masks))),
    }
    return places[:QUERIES], asked


def changed(pictures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, h, h), brighter or darker and with grain, and rectangles in them, (n, h, h) bool."""
    side = pictures.shape[3]
    brightness = CHANGE * torch.randn(len(pictures), 1, 1, 1, generator=rng)
    grain = CHANGE * torch.randn(pictures.shape, generator=rng)
    masks = torch.zeros(len(pictures), side, side, dtype=torch.bool)
    for mask in masks:
        height, width = torch.randint(3 * side // 8, 5 * side // 8 + 1, (2,), generator=rng).tolist()
        top, left = (int(torch.randint(side + 1 - size, (1,), generator=rng)) for size in (height, width))
        mask[top : top + height, left : left + width] = True
    return (pictures + brightness + grain).clamp(0, 1), masks


def built(folder: Path, varied: Varied, asked: Asked, tell: Tell) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """Build both indexes, and find the nearest pictures by the exact distance while every picture is at hand.

    Returns:
        The index of lists, the places (QUERIES, 51) by kind of query, and the seconds and bytes of both indexes.
    """
    # as many lists as are usual, for which there are pictures to learn from
    lists = faiss.index_factory(
        TILES.shape[0] * TILES.shape[1], f"PCAR128,IVF{2 ** round(math.log2(len(varied)) / 2)},PQ64"
    )
    inner: Any = faiss.downcast_index(faiss.extract_index_ivf(lists))
    # a quarter of what faiss would take, which is enough for two numbers
    inner.pq.cp.max_points_per_centroid = 64
    began = time.perf_counter()
    sample = varied.at(spread(len(varied), LEARNED)).flatten(1).numpy()
    making = varied.seconds
    lists.train(sample)
    of_lists, of_truth = time.perf_counter() - began - making, 0.0
    del sample
    nearest = {kind: (torch.empty(QUERIES, 0), torch.empty(QUERIES, 0, dtype=torch.long)) for kind in asked}

    def take(done: int, _total: int) -> None:
        nonlocal of_lists, of_truth
        began = time.perf_counter()
        lists.add(varied.last.flatten(1).numpy())
        of_lists += time.perf_counter() - began
        began = time.perf_counter()
        places = torch.arange(done - len(varied.last), done).expand(QUERIES, -1)
        for kind, (described, weights) in asked.items():
            new = distances_between(described, varied.last, weights)
            distances, all_places = (
                torch.cat(parts, dim=1) for parts in zip(nearest[kind], (new, places), strict=True)
            )
            distances, order = distances.topk(min(NEXT + 1, distances.shape[1]), dim=1, largest=False)
            nearest[kind] = distances, all_places.gather(1, order)
        of_truth += time.perf_counter() - began
        tell(done)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / candidates.FILE).unlink(missing_ok=True)
    began, made, earlier = time.perf_counter(), varied.seconds, of_lists
    candidates.extend(folder, varied, take)
    of_codes = time.perf_counter() - began - (varied.seconds - made) - (of_lists - earlier) - of_truth
    size = (folder / candidates.FILE).stat().st_size
    figures = {
        "codes": {"build_seconds": of_codes, "bytes": size},
        "pq": {"build_seconds": of_codes, "bytes": size},
        # a place takes eight bytes beside the code
        "ivf-pq": {"build_seconds": of_lists, "bytes": (inner.code_size + 8) * inner.ntotal, "lists": inner.nlist},
    }
    return lists, {kind: places for kind, (_, places) in nearest.items()}, figures


def by_faiss(index: Any, described: Tensor, _weights: Tensor, k: int, probed: int | None = None) -> Tensor:
    """The places (B, k) of pictures that faiss finds; -1 where it finds no more."""
    if probed is not None:
        faiss.extract_index_ivf(index).nprobe = probed
    return torch.from_numpy(index.search(described.flatten(1).numpy(), k)[1])


def recall(search: Search, method: Method, sources: Tensor, asked: Asked, truth: dict[str, Tensor]) -> dict[str, Any]:
    """What a first stage finds, by kind of query."""
    figures = {}
    for kind, (described, weights) in asked.items():
        rows = zip(
            method(described, weights, candidates.CANDIDATES), described, weights, sources, truth[kind], strict=True
        )
        shares = []
        for places, query, weight, source, exact in rows:
            among = places[places >= 0]
            nearest = among[search.distances(query, among, weight).argmin()]
            near = torch.isin(exact, among)
            shares.append([places[0] == source, nearest == source, near[0], near[1:].float().mean()])
        means = torch.tensor(shares, dtype=torch.float64).mean(dim=0).tolist()
        figures[kind] = dict(zip(("first", "source", "nearest", "next_fifty"), means, strict=True))
    return figures


def one(method: Method, asked: Asked) -> Callable[[int], object]:
    """A call that searches for one query, the next one in every round."""
    described, weights = asked["whole"]
    return lambda row: method(described[row : row + 1], weights[row : row + 1], candidates.CANDIDATES)


def batch(method: Method, asked: Asked) -> Callable[[int], object]:
    """A call that searches for as many queries as a batch has."""
    described, weights = asked["whole"]
    return lambda _: method(described[:BATCH], weights[:BATCH], candidates.CANDIDATES)


def timed(calls: dict[str, Callable[[int], object]], share: float = 1) -> dict[str, dict[str, float]]:
    """Seconds of calls, divided by `share`; all of them are called in turn, and again with the number of the round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call(number)
            # the first round fetches memory
            if number:
                seconds[name].append((time.perf_counter() - began) / share)
    return {name: spread_of(values) for name, values in seconds.items()}


def spread_of(seconds: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"value": statistics.median(seconds), "least": min(seconds), "greatest": max(seconds)}


def second_stage(shards: Shards, whole: tuple[Tensor, Tensor]) -> tuple[dict[str, float], dict[str, float], float]:
    """Seconds in which candidates are read and compared: from memory, and from disk; and those to read one of them."""
    search, rng = Search(shards, None), torch.Generator().manual_seed(1)
    places = torch.randint(len(shards), (ROUNDS + 1, candidates.CANDIDATES), generator=rng)
    for _ in shards.chunks():
        pass  # from now on they are in memory

    def compare(number: int) -> None:
        search.distances(whole[0][number], places[number], whole[1][number])

    def read(number: int) -> None:
        for portion in places[number].sort().values.split(IN_CACHE // math.prod(TILES.shape)):
            shards.at(portion)

    def forget() -> None:
        for path in (CACHE / "matching").glob("*.npy"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    seconds = timed({"compare": compare, "read": read})
    from_disk = []
    for number in range(ROUNDS):
        again = Search(Shards(CACHE / "matching", TILES.shape), None)
        forget()
        began = time.perf_counter()
        again.distances(whole[0][number], places[number], whole[1][number])
        from_disk.append(time.perf_counter() - began)
    return seconds["compare"], spread_of(from_disk), seconds["read"]["value"] / candidates.CANDIDATES


def flat(varied: Varied, whole: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """An index of faiss that compares everything, from one that fits into memory."""
    index = faiss.IndexFlatL2(math.prod(TILES.shape))
    index.add(varied.at(spread(len(varied), FLAT)).flatten(1).numpy())
    queries, scale = whole[0].flatten(1).numpy(), len(varied) / index.ntotal
    seconds = {
        "one": timed({"": lambda row: index.search(queries[row : row + 1], NEXT + 1)}, 1 / scale)[""],
        f"each_of_{BATCH}": timed({"": lambda _: index.search(queries[:BATCH], NEXT + 1)}, BATCH / scale)[""],
    }
    return {**seconds, "bytes": 4 * index.d * len(varied)}


def matched(search: Search, described: Tensor, weights: Tensor, read: float) -> dict[str, Any]:
    """Matches of single queries among all pictures; `read`: seconds to read one descriptor."""
    varied = search.shards
    assert isinstance(varied, Varied)
    seconds: dict[str, list[float]] = {"seconds": [], "again": []}
    reproduced = []
    _ = search.sample
    for row in range(MATCHED):
        search.relative.clear()
        for values in seconds.values():
            made, making = varied.made, varied.seconds
            began = time.perf_counter()
            matches = reproduction(search, TILES, described[row : row + 1], weights[row : row + 1], 0.01)
            wall = time.perf_counter() - began
            reproduced.append(matches.reproduced.item())
            # a query that is near to nothing needs no null
            if matches.relative.item() <= 1:
                values.append(wall - (varied.seconds - making) + (varied.made - made) * read)
    return {
        **{kind: spread_of(values) if values else None for kind, values in seconds.items()},
        "reproduced": statistics.mean(reproduced),
    }


def real(folder: Path, start: Start) -> dict[str, Any]:
    """Matches among the bases by an exact search and by candidates, on the same queries, by kind of query."""
    (folder / candidates.FILE).unlink(missing_ok=True)
    exact = ImageIndex(folder, TILES)
    candidates.extend(folder, Shards(folder, TILES.shape), None)
    both = {"exact": exact, "candidates": ImageIndex(folder, TILES)}
    rng, stream = torch.Generator().manual_seed(0), training_stream()
    names = [exact.paths[place] for place in torch.randperm(len(exact), generator=rng)[: 2 * BATCH].tolist()]
    pictures = torch.stack(
        [torch.from_numpy(stream[int(Path(name).stem)].image).permute(2, 0, 1).float() / 255 for name in names]
    )
    whole, masks = changed(pictures[:BATCH], rng)
    region = torch.where(masks[:, None], whole, pictures[BATCH:])
    return {
        "whole": compared(both, names[:BATCH], whole, None, start("whole", 2 * BATCH)),
        "region": compared(both, names[:BATCH], region, masks, start("region", 2 * BATCH)),
    }


def compared(
    both: dict[str, ImageIndex], names: list[str], pictures: Tensor, masks: Tensor | None, tell: Tell
) -> dict[str, Any]:
    """Figures of the exact search and of that among candidates."""
    figures: dict[str, Any] = {}
    reproduced, usual = {}, {}
    for number, (kind, index) in enumerate(both.items()):
        seconds, matches = [], []
        for row in range(BATCH):
            single = slice(row, row + 1)
            began = time.perf_counter()
            matches.append(index.match(pictures[single], masks=None if masks is None else masks[single]))
            seconds.append(time.perf_counter() - began)
            tell(number * BATCH + row + 1)
        figures[kind] = {
            "source": statistics.mean(match.paths == [name] for match, name in zip(matches, names, strict=True)),
            "seconds": spread_of(seconds),
        }
        reproduced[kind] = torch.cat([match.reproduced for match in matches])
        usual[kind] = index.search(pictures, masks=masks, k=NEXT + 1).distances[:, 1:].mean(dim=1)
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
