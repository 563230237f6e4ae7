"""Does a picture reproduce one of an index?

In a space of pictures a distance alone says little, because plain pictures are close to everything. So the distance to
the nearest picture is compared with the distances to the next ones (Carlini et al., 2023, arXiv:2301.13188). If a
training image is in the index many times, the next ones are copies of it. These are left out: the pictures that are
nearer to the nearest one than the query is, or nearer than a quarter of its median distance to pictures from all over
the index.

This comparison lets some pictures pass by chance: two pictures of which little is to be seen, or of which little is
left under a mask, a plain corner for instance. So every match is compared with a null. Pictures of the index are
searched under the same mask among all pictures that are no copies of them as a whole, and the query has to come nearer
to its match than any of them does. Plain pictures come near by chance far more often than others, so the null consists
of the pictures whose contrast under the mask is nearest to that of the query. Pictures that share the matched region
with the nearest picture are left out, because they would repeat it, as the copies of a template do. If the mask was
made from the query, the p-value is a yardstick and not an error rate.

A picture that can be read in several ways (`cryptomnesia.decoding`) is one picture: its readings are no neighbours of
each other, and among the next pictures it counts once.

A picture or region with next to no contrast, a black picture or a part of an even background, is never a match, however
near it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.matching.distances import distances_between, distances_from
from cryptomnesia.matching.search import Neighbours, Search
from cryptomnesia.matching.shards import spread
from cryptomnesia.statistics import check_rate, conformal_p_values, needed_null

NEAREST = 50
"""Neighbours that define the usual distance (Carlini et al., 2023)."""

USUAL = 0.5
"""Share of the usual distance within which a picture is a copy (α of Carlini et al.)."""

FEWEST = 10
"""Fewest neighbours that can define the usual distance."""

PLAIN = 0.02
"""Contrast (`Descriptor.contrast`) below which next to nothing is to be seen in a picture or region."""

_FIRST = 2 * NEAREST
"""Neighbours of the first search. The search is repeated with more of them if too many are copies."""

_LIKE = 20
"""Pictures that are looked at for every picture of the null, which takes those with the query's contrast."""


@dataclass(frozen=True)
class Match:
    """The nearest picture of one query, and whether the query reproduces it.

    Attributes:
        path: path of the nearest picture, relative to the folder that was indexed.
        distance: in the descriptor's units; ∞ where the mask of the query left nothing to compare. Then the path means
            nothing.
        relative: the distance divided by the one below which a picture may be a copy; see `Matches.relative`.
        p_value: in (0, 1]; see `Matches.p_values`.
        reproduced: whether the p-value is at most the false-positive rate.
        reading: which reading of the nearest picture it is, for instance "not rotated"; "" if it has only one.
        caption: of the nearest picture, "" if it has none.
    """

    path: str
    distance: float
    relative: float
    p_value: float
    reproduced: bool
    reading: str
    caption: str


@dataclass(frozen=True)
class Matches:
    """The nearest picture of each of B queries, and whether the query reproduces it; `Match` for `Match` in a loop.

    Attributes:
        paths: B paths of pictures, relative to the folder that was indexed.
        distances: (B,), in the descriptor's units; ∞ where the mask of a query left nothing to compare. Then the path
            means nothing.
        relative: (B,): the distance divided by `USUAL` times the mean distance of the `NEAREST` next pictures that are
            no copies of the nearest one. ∞ where the index holds fewer than `FEWEST` of these. If candidates leave out
            some of the next pictures, the value is too small; benchmarks/matching.py measures by how much.
        p_values: (B,) float64: conformal p-values of so small a `relative` among n pictures of the index under the
            same mask, (1 + #{null ≤ relative})/(n + 1). 1 where `relative` exceeds 1, or where next to nothing is to
            be seen.
        reproduced: (B,) bool: whether the p-value is at most the false-positive rate.
        readings: B readings of the nearest pictures (`cryptomnesia.decoding`), "" for pictures that have only one.
        captions: B captions of the nearest pictures, "" for pictures without.
    """

    paths: list[str]
    distances: Tensor
    relative: Tensor
    p_values: Tensor
    reproduced: Tensor
    readings: list[str]
    captions: list[str]

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Match]:
        """Yield the match of every query."""
        columns = (self.distances, self.relative, self.p_values, self.reproduced)
        yield from map(Match, self.paths, *(column.tolist() for column in columns), self.readings, self.captions)


def check_size(pictures: int, fpr: float) -> None:
    """Check that an index of this many pictures can tell a match from chance at a false-positive rate.

    Raises:
        UsageError: if it cannot, or the rate is not between 0 and 1.
    """
    check_rate(fpr)
    # half as many again as the null needs, because copies of the nearest picture are left out of it
    fewest = max(FEWEST + 2, math.ceil(1.5 / fpr))
    if pictures < fewest:
        raise UsageError(
            f"the index holds {pictures} pictures, too few to tell a match from chance at a rate of {fpr:g}; "
            f"add other pictures of the kind, {fewest} at least and better hundreds"
        )


def reproduction(search: Search, descriptor: Descriptor, described: Tensor, weights: Tensor, fpr: float) -> Matches:
    """Match queries.

    Args:
        search: in the index.
        descriptor: of the index.
        described: descriptors of the queries, (B, T, P).
        weights: (B, T, P), or (1, T, P) for all queries.
        fpr: share of ordinary pictures that may be found to reproduce another one by chance, in (0, 1).
    """
    distances, relative, nearest = _relative(search, described, weights)
    # in double precision, so that a p-value of 1/20 is at most a rate of .05
    p_values = torch.ones_like(relative, dtype=torch.float64)
    for row in (relative <= 1).nonzero()[:, 0].tolist():
        mask = weights[row % len(weights)]
        if descriptor.contrast(described[row : row + 1], mask).item() < PLAIN:
            continue
        places = _null_places(search, descriptor, described[row], mask, nearest[row : row + 1], needed_null(fpr))
        whole = mask.min() == 1
        null = _null_whole(search, places) if whole else _null_inside(search, places, mask, relative[row].item())
        # a small value is the unusual one
        p_values[row] = conformal_p_values(-relative[row : row + 1], -null[~null.isnan()])[0]
    shards, places = search.shards, nearest.tolist()
    return Matches(
        [shards.paths[place] for place in places],
        distances,
        relative,
        p_values,
        p_values <= fpr,
        [shards.readings.get(place, "") for place in places],
        [shards.caption(place) for place in places],
    )


def _relative(
    search: Search,
    described: Tensor,
    weights: Tensor,
    places: Tensor | None = None,
    neighbours: Neighbours | None = None,
    most: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the nearest picture of queries.

    Args:
        search: in the index.
        described: descriptors of the queries, (B, T, P).
        weights: (B, T, P), or (1, T, P) for all queries.
        places: places of the queries (B,) if they are pictures of the index, which are not compared with themselves
            and their copies.
        neighbours: the `_FIRST` neighbours of every query, if they have been searched for already.
        most: largest value that has to be exact. A larger value may be given too small, but not below this.

    Returns:
        Distances of the nearest pictures, `Matches.relative` and places of the nearest pictures, (B,) each.
    """
    everywhere = torch.ones_like(weights[0])
    nearest_distances, relative = torch.full((2, len(described)), torch.inf)
    nearest = torch.zeros(len(described), dtype=torch.long)
    k, remaining = _FIRST, torch.arange(len(described))
    while len(remaining):
        if neighbours is None:
            portion = weights if len(weights) == 1 else weights[remaining]
            neighbours = search.nearest(described[remaining], portion, k)
        short = []
        for row, distances, positions in zip(
            remaining.tolist(), neighbours.distances, neighbours.positions, strict=True
        ):
            mask = weights[row % len(weights)]
            if places is not None:
                copy = _copy_distance(search, described[row], everywhere)
                others = search.distances(described[row], positions, everywhere) > copy
                others &= ~search.shards.same(positions, places[row])
                distances, positions = distances[others], positions[others]
            usual = distances[:0]
            if len(distances) and distances[0].isfinite():
                nearest_distances[row], nearest[row] = distances[0], positions[0]
                first = search.shards.at(positions[:1])[0]
                from_first = search.distances(first, positions[1:], mask)
                copy = _copy_distance(search, first, mask)
                # readings of the nearest picture are no other pictures, and those of another one count once
                others = from_first > distances[0].maximum(copy)
                others &= search.shards.once(positions)[1:] & ~search.shards.same(positions[1:], positions[0])
                usual = distances[1:][others][:NEAREST]
            if len(usual) >= FEWEST:
                relative[row] = distances[0] / (USUAL * usual.mean())
            if len(usual) < NEAREST and mask.any():
                # the neighbours that are missing are no farther than the farthest picture
                farthest = distances_from(described[row], search.sample, mask).amax()
                largest = USUAL * (usual.sum() + (NEAREST - len(usual)) * farthest) / NEAREST
                if nearest_distances[row] > most * largest and nearest_distances[row].isfinite():
                    relative[row] = nearest_distances[row] / largest
                else:
                    short.append(row)
        if k >= len(search):
            break
        remaining, k, neighbours = torch.tensor(short, dtype=torch.long), 4 * k, None
    return nearest_distances, relative, nearest


def _null_places(
    search: Search, descriptor: Descriptor, described: Tensor, weights: Tensor, nearest: Tensor, size: int
) -> Tensor:
    """Choose the pictures of a query's null.

    Args:
        search: in the index.
        descriptor: of the index.
        described: descriptor of the query, (T, P).
        weights: of the query, (T, P).
        nearest: place of the nearest picture, (1,), whose copies are left out.
        size: pictures of the null.

    Returns:
        Places (n,) of pictures whose contrast is nearest to the query's, n ≤ size.
    """
    firsts = search.shards.firsts
    looked_at = firsts[spread(len(firsts), _LIKE * size)]
    # a descriptor may give all pictures the same contrast; then the order decides, so it must not be that of the index
    looked_at = looked_at[torch.randperm(len(looked_at), generator=torch.Generator().manual_seed(0))]
    first = search.shards.at(nearest)[0]
    copy = _copy_distance(search, first, weights)
    contrast = descriptor.contrast(described[None], weights)
    kept, differences = [], []
    for places in looked_at.split(2048):
        values = search.shards.at(places)
        others = (distances_from(first, values, weights) > copy) & ~search.shards.same(places, nearest)
        kept.append(places[others])
        differences.append((descriptor.contrast(values[others], weights) - contrast).abs())
    return torch.cat(kept)[torch.cat(differences).argsort(stable=True)[:size]]


def _null_whole(search: Search, places: Tensor) -> Tensor:
    """`Matches.relative` (n,) of whole pictures of the index among the others, NaN where it cannot be computed."""
    new = torch.tensor([place for place in places.tolist() if place not in search.relative], dtype=torch.long)
    if len(new):
        described = search.shards.at(new)
        _, relative, _ = _relative(search, described, torch.ones_like(described[:1]), new)
        search.relative.update(zip(new.tolist(), relative.tolist(), strict=True))
    relative = torch.tensor([search.relative[place] for place in places.tolist()])
    return relative.masked_fill(relative.isinf(), torch.nan)


def _null_inside(search: Search, places: Tensor, mask: Tensor, most: float) -> Tensor:
    """`Matches.relative` (n,) of pictures of the index under a mask (T, P), NaN where it cannot be computed.

    ∞ where it is sure to exceed `most`.
    """
    described = search.shards.at(places)
    neighbours = search.nearest(described, mask[None], _FIRST)
    same = search.shards.same(neighbours.positions, places[:, None])
    nearest = neighbours.distances.masked_fill(same, torch.inf).amin(dim=1)
    # the usual distance is no larger than the largest
    farthest = distances_between(described, search.sample, mask[None]).amax(dim=1)
    unclear = nearest <= USUAL * most * farthest
    if len(search) <= _FIRST:
        unclear[:] = True
    relative = torch.full_like(nearest, torch.inf)
    if unclear.any():
        first = Neighbours(neighbours.distances[unclear], neighbours.positions[unclear])
        _, exact, _ = _relative(search, described[unclear], mask[None], places[unclear], first, most)
        relative[unclear] = exact.masked_fill(exact.isinf(), torch.nan)
    return relative


def _copy_distance(search: Search, described: Tensor, weights: Tensor) -> Tensor:
    """The distance from a picture `described` (T, P) under weights (T, P) within which others are copies of it."""
    return distances_from(described, search.sample, weights).median() / 4
