"""The nearest pictures of an index: among all of them, or among candidates where the index has these."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cryptomnesia.matching.candidates import CANDIDATES, Candidates
from cryptomnesia.matching.distances import distances_between, distances_from
from cryptomnesia.matching.shards import Shards, spread

IN_CACHE = 2**19
"""Numbers of descriptors that are compared at a time, two megabytes."""


@dataclass(frozen=True)
class Neighbours:
    """The k nearest pictures of each of B queries, nearest first.

    Attributes:
        distances: (B, k), in the descriptor's units; ∞ where the mask of a query left nothing to compare.
        positions: (B, k) int64, positions in `ImageIndex.paths`.
    """

    distances: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Search:
    """What a search in an index needs.

    Attributes:
        shards: the descriptors.
        candidates: a first stage that chooses which pictures are compared; None if all of them are.
        relative: place → `Matches.relative` of that picture as a whole among the others. It is filled as values are
            asked for.
    """

    shards: Shards
    candidates: Candidates | None
    relative: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of places."""
        return len(self.shards)

    @cached_property
    def sample(self) -> Tensor:
        """Descriptors (n, T, P) of pictures from all over the index."""
        firsts = self.shards.firsts
        return self.shards.at(firsts[spread(len(firsts), 256)])

    def nearest(self, described: Tensor, weights: Tensor, k: int) -> Neighbours:
        """Find the k nearest pictures of queries.

        Args:
            described: descriptors of the queries, (B, T, P).
            weights: (B, T, P), or (1, T, P) for all queries.
            k: neighbours of every query; a smaller index gives fewer.
        """
        compared = max(CANDIDATES, 4 * k)
        if self.candidates is None or compared >= len(self):
            neighbours = self._nearest_of_all(described, weights, k)
        else:
            weights = weights.expand_as(described)
            places = self.candidates.nearest(described, weights, compared)
            neighbours = self._nearest_of(described, weights, k, places)
        neighbours.distances[~weights.any(dim=(1, 2)).expand(len(described))] = torch.inf
        return neighbours

    def _nearest_of_all(self, described: Tensor, weights: Tensor, k: int) -> Neighbours:
        distances = torch.empty(len(described), 0)
        positions = torch.empty(len(described), 0, dtype=torch.long)
        for start, stored in self.shards.chunks():
            new = distances_between(described, stored, weights)
            distances = torch.cat([distances, new], dim=1)
            positions = torch.cat([positions, torch.arange(start, start + new.shape[1]).expand(len(new), -1)], dim=1)
            distances, order = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
            positions = positions.gather(1, order)
        return Neighbours(distances, positions)

    def _nearest_of(self, described: Tensor, weights: Tensor, k: int, places: Tensor) -> Neighbours:
        """The k nearest of the pictures at `places` (B, n)."""
        all_distances = torch.stack([self.distances(*query) for query in zip(described, places, weights, strict=True)])
        distances, order = all_distances.topk(k, dim=1, largest=False)
        return Neighbours(distances, places.gather(1, order))

    def distances(self, described: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """Distances (n,) of the pictures at `places` (n,) from one picture `described` (T, P) under weights (T, P)."""
        result = torch.empty(len(places))
        # in the order in which they are stored, and so few at a time that they stay in the cache of the processor
        for portion in places.argsort().split(max(IN_CACHE // described.numel(), 1)):
            result[portion] = distances_from(described, self.shards.at(places[portion]), weights)
        return result
