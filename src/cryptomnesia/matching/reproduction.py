"""Does a picture reproduce one of an index?

In a space of pictures distances alone say little: plain pictures lie close to everything. So the distance to the
nearest is compared with those to the next ones (Carlini et al., 2023, arXiv:2301.13188). Where a training image is
there many times the next ones are copies of it, and left out: those nearer to it than the query, or than a quarter of
its median distance to pictures from all over the index.

That alone lets pictures through by chance: two that show little, or have little left under a mask, a plain corner say.
So a match has a null of its own. Pictures of the index under the same mask are each compared with all that are no
copies of them as a whole, and the query has to come nearer than any of them does. Plain pictures come near by chance
far more often than others, so the null is those whose contrast under the mask is nearest to the query's. Those that
share the matched region with the nearest picture are left out: they would repeat it, as a template's copies do. Where
the mask comes from the query, the p-value is a yardstick rather than an error rate.

What shows next to nothing, a black picture or a part of an even ground, is no evidence of anything, however near.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.matching.search import Neighbours, Search, distance, distances_among
from cryptomnesia.matching.shards import spread

NEAREST = 50
"""Neighbours that say what distance is usual (Carlini et al., 2023)."""

USUAL = 0.5
"""Share of the usual distance within which a picture is a copy (their α)."""

FEWEST = 10
"""Of the neighbours, without which nothing can be said."""

PLAIN = 0.02
"""Contrast (`Descriptor.contrast`) below which a picture or region shows next to nothing."""

_FIRST = 2 * NEAREST
"""Neighbours that are looked at first; more where too many of them are copies."""

_LIKE = 20
"""Pictures of which the one that is most like the query goes into its null."""


@dataclass(frozen=True)
class Matches:
    """The nearest picture of each of B queries, and whether it is nearer than pictures usually are.

    Attributes:
        paths: in `ImageIndex.paths`.
        distances: (B,), in the descriptor's units; ∞ where a query had nothing to be compared by.
        relative: (B,): the distance over `USUAL` times the mean distance of the `NEAREST` next pictures that are no
            copies of the nearest one. ∞ where the index holds fewer than `FEWEST` such. Next ones that candidates leave
            out make it too small; benchmarks/matching.py measures by how much.
        p_values: (B,) float64: how usual so small a `relative` is for pictures of the index under the same mask,
            (1 + #{null ≤ relative})/(n + 1) for n pictures; 1 where `relative` exceeds 1, or there is next to nothing
            to see.
        reproduced: (B,) bool: whether the p-value is at most the rate.
    """

    paths: list[str]
    distances: Tensor
    relative: Tensor
    p_values: Tensor
    reproduced: Tensor


def match(search: Search, descriptor: Descriptor, own: Tensor, weights: Tensor, rate: float) -> Matches:
    """Compare descriptors `own` (B, T, P) under `weights`, (B, T, P) or (1, T, P) for all."""
    distances, relative, nearest = _relative(search, own, weights)
    # a share such as 1/20 is to be compared with .05 as it is
    p_values = torch.ones_like(relative, dtype=torch.float64)
    for row in (relative <= 1).nonzero()[:, 0].tolist():
        mask = weights[row % len(weights)]
        if descriptor.contrast(own[row : row + 1], mask).item() < PLAIN:
            continue
        null = _null(search, descriptor, own[row], mask, nearest[row : row + 1], math.ceil(1 / rate) - 1)
        as_near = _whole(search, null) if mask.min() == 1 else _inside(search, null, mask, relative[row].item())
        known = as_near[~as_near.isnan()]
        p_values[row] = (1 + (known <= relative[row]).sum().item()) / (1 + len(known))
    paths = [search.shards.paths[each] for each in nearest.tolist()]
    return Matches(paths, distances, relative, p_values, p_values <= rate)


def _relative(
    search: Search,
    own: Tensor,
    weights: Tensor,
    themselves: Tensor | None = None,
    found: Neighbours | None = None,
    most: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance of the nearest picture, `Matches.relative` and its place for descriptors `own` under `weights`.

    Pictures of the index itself, at the places `themselves` (B,), are not compared with their copies. The `_FIRST`
    neighbours may be `found` already. What is sure to exceed `most` may be given too small, though not below it.
    """
    everywhere = torch.ones_like(weights[0])
    distances, relative = torch.full((2, len(own)), torch.inf)
    nearest = torch.zeros(len(own), dtype=torch.long)
    k, left = _FIRST, torch.arange(len(own))
    while len(left):
        if found is None:
            found = search.nearest(own[left], weights if len(weights) == 1 else weights[left], k)
        short = []
        for row, apart, positions in zip(left.tolist(), found.distances, found.positions, strict=True):
            mask = weights[row % len(weights)]
            if themselves is not None:
                others = search.apart(everywhere, own[row], positions) > _copy(search, everywhere, own[row])
                others &= positions != themselves[row]
                apart, positions = apart[others], positions[others]
            usual = apart[:0]
            if len(apart) and apart[0].isfinite():
                distances[row], nearest[row] = apart[0], positions[0]
                first = search.shards.at(positions[:1])[0]
                among = search.apart(mask, first, positions[1:])
                usual = apart[1:][among > apart[0].maximum(_copy(search, mask, first))][:NEAREST]
            if len(usual) >= FEWEST:
                relative[row] = apart[0] / (USUAL * usual.mean())
            if len(usual) < NEAREST and mask.any():
                # what is missing is no farther than the farthest
                farthest = distance(mask, own[row], search.anywhere).amax()
                largest = USUAL * (usual.sum() + (NEAREST - len(usual)) * farthest) / NEAREST
                if distances[row] > most * largest and distances[row].isfinite():
                    relative[row] = distances[row] / largest
                else:
                    short.append(row)
        if k >= len(search):
            break
        left, k, found = torch.tensor(short, dtype=torch.long), 4 * k, None
    return distances, relative, nearest


def _whole(search: Search, places: Tensor) -> Tensor:
    """`Matches.relative` of pictures of the index among the others, NaN where it is not known, (n,)."""
    new = torch.tensor([place for place in places.tolist() if place not in search.relative], dtype=torch.long)
    if len(new):
        own = search.shards.at(new)
        _, found, _ = _relative(search, own, torch.ones_like(own[:1]), new)
        search.relative.update(zip(new.tolist(), found.tolist(), strict=True))
    found = torch.tensor([search.relative[place] for place in places.tolist()])
    return found.masked_fill(found.isinf(), torch.nan)


def _inside(search: Search, places: Tensor, mask: Tensor, most: float) -> Tensor:
    """Likewise under a mask (T, P), ∞ wherever it is sure to exceed `most`."""
    own = search.shards.at(places)
    found = search.nearest(own, mask[None], _FIRST)
    nearest = found.distances.masked_fill(found.positions == places[:, None], torch.inf).amin(dim=1)
    # what is usual is no farther than the farthest
    farthest = distances_among(mask[None], own, search.anywhere).amax(dim=1)
    unclear = nearest <= USUAL * most * farthest
    if len(search) <= _FIRST:
        unclear[:] = True
    relative = torch.full_like(nearest, torch.inf)
    if unclear.any():
        these = Neighbours(found.distances[unclear], found.positions[unclear])
        _, exact, _ = _relative(search, own[unclear], mask[None], places[unclear], these, most)
        relative[unclear] = exact.masked_fill(exact.isinf(), torch.nan)
    return relative


def _copy(search: Search, weights: Tensor, one: Tensor) -> Tensor:
    """The distance from a descriptor (T, P) under weights (T, P) within which others are copies of it."""
    return distance(weights, one, search.anywhere).median() / 4


def _null(search: Search, descriptor: Descriptor, own: Tensor, weights: Tensor, nearest: Tensor, size: int) -> Tensor:
    """Places of pictures with as much contrast as `own` (T, P) under weights (T, P), none a copy of `nearest` (1,)."""
    some = spread(len(search), _LIKE * size)
    # a descriptor may know no contrast; then any will do, from all over the index
    some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0))]
    first = search.shards.at(nearest)[0]
    copy = _copy(search, weights, first)
    contrast = descriptor.contrast(own[None], weights)
    others, unlike = [], []
    for places in some.split(2048):
        values = search.shards.at(places)
        kept = distance(weights, first, values) > copy
        others.append(places[kept])
        unlike.append((descriptor.contrast(values[kept], weights) - contrast).abs())
    return torch.cat(others)[torch.cat(unlike).argsort(stable=True)[:size]]
