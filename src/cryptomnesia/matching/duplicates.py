"""Clusters of near-identical pictures in an index.

Pictures that a training set holds many times are the known cause of memorization (Somepalli et al., 2023,
arXiv:2305.20086; Webster et al., 2023, arXiv:2303.12733), so their captions are the first prompts to audit.

Two pictures are near-identical if each of them is a copy of the other by the rule of `reproduction`: their distance is
below a quarter of the median distance of either to pictures from all over the index. It has to be below a third of the
contrast of either as well, because pictures of low contrast are near to many others, and a chain of them would become
one cluster. Of pictures with next to no contrast only equal ones count. Clusters are the connected components of this
relation: two pictures of a cluster may be joined by others that lie between them.

Every picture is compared with every other, but most pairs are dismissed cheaply. A projection on orthogonal directions
never makes a distance larger, and neither does the mean over tiles compared with the largest of them. So pictures are
sorted along the direction in which they differ most, a picture is compared only with those that follow it closely
enough there, by few numbers, and the pairs that remain are compared exactly. No pair is missed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.matching.distances import distances_between
from cryptomnesia.matching.reproduction import PLAIN
from cryptomnesia.matching.search import Search

_BLOCK = 2048
"""Readings that are compared at once with as many others."""

_DIRECTIONS = 64
"""Most numbers by which pairs are dismissed."""

_SLACK = 1e-3
"""What is added to a limit before pairs are dismissed, more than rounding takes away."""

_EQUAL = 1 / 255
"""Distance below which pictures with next to no contrast count as equal."""


@dataclass(frozen=True)
class Cluster:
    """Pictures that are near-identical.

    Attributes:
        pictures: their names, sorted, at least two.
        captions: caption → number of pictures that have it, the most frequent first; "" for pictures without.
    """

    pictures: list[str]
    captions: dict[str, int]

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pictures)

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield a row per caption, as a file of prompts holds them; `number` is that of the cluster.

        Its keys are `prompt`, `count` (pictures with this caption), `cluster`, `size` (pictures of the cluster) and
        `pictures`.
        """
        for caption, count in self.captions.items():
            yield {
                "prompt": caption,
                "count": count,
                "cluster": number,
                "size": len(self),
                "pictures": self.pictures,
            }


def duplicates(
    search: Search, descriptor: Descriptor, progress: Callable[[int, int], None] | None = None
) -> list[Cluster]:
    """All clusters of an index, the largest first.

    Args:
        search: in the index.
        descriptor: of the index.
        progress: called with the number of readings that have been compared and the number of all.
    """
    limits, few = _limits(search, descriptor)
    order = few[:, 0].argsort()
    few, sorted_limits = few[order], limits[order]
    joined = _Joined(len(search))
    pictures = search.shards.pictures
    if pictures is not None:
        _join_readings(joined, pictures)
    starts = range(0, len(order), _BLOCK)
    # the farthest along the first direction that a pair within its limits can lie
    most = [float(sorted_limits[start : start + _BLOCK].amax()) for start in starts]
    for number, start in enumerate(starts):
        rows = slice(start, start + _BLOCK)
        reach = float(few[rows, 0].amax()) + most[number] + _SLACK
        described = search.shards.at(order[rows])
        for other in starts[number:]:
            columns = slice(other, other + _BLOCK)
            if float(few[other, 0]) > reach:
                break
            near = _near(few[rows], few[columns], sorted_limits[rows])
            if other == start:
                near = near.triu(diagonal=1)
            first, second = near.nonzero(as_tuple=True)
            unjoined = joined.apart(order[rows][first], order[columns][second])
            first, second = first[unjoined], second[unjoined]
            if len(first):
                _join_exactly(search, joined, described, order, limits, (start, other), first, second)
        if progress is not None:
            progress(min(start + _BLOCK, len(order)), len(order))
    return _clusters(search, joined)


def _limits(search: Search, descriptor: Descriptor) -> tuple[Tensor, Tensor]:
    """Distance within which others are copies of a picture, and the numbers by which pairs are dismissed.

    Returns:
        (n,) and (n, D): differences of the latter are no larger than distances.
    """
    sample = search.sample
    flat = sample.flatten(1)
    centre = flat.mean(dim=0)
    _, spread, directions = torch.linalg.svd(flat - centre, full_matrices=False)
    shares = (spread**2).cumsum(0) / (spread**2).sum().clamp_min(1e-12)
    wanted = min(_DIRECTIONS, int((shares < 0.95).sum()) + 1, len(directions))
    project = directions[:wanted].T
    everywhere = torch.ones_like(sample[:1])
    limits, few = [], []
    for _, values in search.shards.chunks():
        limit = distances_between(values, sample, everywhere).median(dim=1).values / 4
        contrast = descriptor.contrast(values, everywhere[0])
        limits.append(limit.minimum(contrast / 3).masked_fill(contrast < PLAIN, _EQUAL))
        few.append((values.flatten(1) - centre) @ project / flat.shape[1] ** 0.5)
    return torch.cat(limits), torch.cat(few)


def _near(few: Tensor, others: Tensor, limits: Tensor) -> Tensor:
    """Which of `others` (m, D) may be within the limits (n,) of `few` (n, D), (n, m) bool."""
    products = torch.addmm((others**2).sum(dim=1)[None], few, others.T, alpha=-2)
    # a little more, for what rounding may take away
    return products <= ((limits + _SLACK) ** 2 - (few**2).sum(dim=1))[:, None]


def _join_exactly(
    search: Search,
    joined: "_Joined",
    described: Tensor,
    order: Tensor,
    limits: Tensor,
    starts: tuple[int, int],
    first: Tensor,
    second: Tensor,
) -> None:
    """Join the pairs of two blocks that are near-identical.

    Args:
        search: in the index.
        joined: what has been joined so far.
        described: descriptors of the first block, (n, T, P).
        order: places in the order in which they are compared.
        limits: distance within which others are copies of a place, (n,).
        starts: of both blocks in `order`.
        first: rows in the first block, (m,).
        second: rows in the second block, (m,).
    """
    columns, inverse = second.unique(return_inverse=True)
    others = search.shards.at(order[starts[1] + columns])
    for rows, of_others in zip(first.split(_BLOCK), inverse.split(_BLOCK), strict=True):
        # pairs before may have joined these
        places, other_places = order[starts[0] + rows], order[starts[1] + columns[of_others]]
        unjoined = joined.apart(places, other_places)
        if not unjoined.any():
            continue
        rows, of_others, places, other_places = (
            rows[unjoined],
            of_others[unjoined],
            places[unjoined],
            other_places[unjoined],
        )
        squares = (described[rows] - others[of_others]).square_().mean(dim=2)
        distances = squares.amax(dim=1).sqrt()
        near = distances <= torch.minimum(limits[places], limits[other_places])
        joined.join(places[near], other_places[near])


class _Joined:
    """A partition of places; its parts are joined pair by pair."""

    def __init__(self, places: int) -> None:
        self._parts = torch.arange(places)

    def parts(self) -> Tensor:
        """The part of every place, (n,): the smallest place that stands for it."""
        while True:
            upper = self._parts[self._parts]
            if upper.equal(self._parts):
                return upper
            self._parts = upper

    def apart(self, first: Tensor, second: Tensor) -> Tensor:
        """Which pairs lie in different parts, (m,) bool."""
        return self._top(first) != self._top(second)

    def join(self, first: Tensor, second: Tensor) -> None:
        """Join the parts of every pair."""
        if not len(first):
            return
        tops = torch.stack([self._top(first), self._top(second)])
        names, local = tops.unique(return_inverse=True)
        ones = np.ones(local.shape[1], dtype=np.int8)
        graph = coo_array((ones, (local[0].numpy(), local[1].numpy())), shape=(len(names), len(names)))
        _, labels = connected_components(graph, directed=False)
        label = torch.from_numpy(labels.astype(np.int64))
        # names are sorted, so the first of a label is the smallest
        smallest = torch.full((len(names),), len(self._parts)).scatter_reduce(0, label, names, "amin")
        self._parts[names] = smallest[label]

    def _top(self, places: Tensor) -> Tensor:
        """The place that stands for the part of every place."""
        top = self._parts[places]
        while not (upper := self._parts[top]).equal(top):
            top = upper
        # shorter ways for the next time
        self._parts[places] = top
        return top


def _join_readings(joined: _Joined, pictures: Tensor) -> None:
    """Join the readings of every picture, which follow each other."""
    places = torch.arange(len(pictures) - 1)
    same = pictures.diff() == 0
    joined.join(places[same], places[same] + 1)


def _clusters(search: Search, joined: _Joined) -> list[Cluster]:
    """The parts with more than one picture, the largest first."""
    shards = search.shards
    parts = joined.parts()[shards.firsts]
    names, inverse, counts = parts.unique(return_inverse=True, return_counts=True)
    inside = counts[inverse] > 1
    members: dict[int, list[int]] = {}
    for place, part in zip(shards.firsts[inside].tolist(), names[inverse][inside].tolist(), strict=True):
        members.setdefault(part, []).append(place)
    found = []
    for places in members.values():
        captions = Counter(shards.caption(place) for place in places)
        found.append(Cluster(sorted(shards.paths[place] for place in places), dict(captions.most_common())))
    return sorted(found, key=lambda cluster: (-len(cluster), cluster.pictures[0]))
