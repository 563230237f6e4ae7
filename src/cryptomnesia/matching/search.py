"""The nearest pictures of an index, among all of them or among candidates."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cryptomnesia.matching.candidates import CANDIDATES, Candidates
from cryptomnesia.matching.shards import Shards, spread


@dataclass(frozen=True)
class Neighbours:
    """The nearest pictures of each of B queries, nearest first.

    Attributes:
        distances: (B, k), in the descriptor's units; ∞ where a query had nothing to be compared by.
        positions: (B, k) int64, places in `ImageIndex.paths`.
    """

    distances: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Search:
    """What an index is searched by.

    Attributes:
        shards: the descriptors.
        candidates: which of them are worth a look; None where all are looked at.
        relative: place → `Matches.relative` of that picture as a whole among the others, as far as it was asked for.
    """

    shards: Shards
    candidates: Candidates | None
    relative: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.shards)

    @cached_property
    def anywhere(self) -> Tensor:
        """Descriptors of pictures from all over the index, (n, T, P)."""
        return self.shards.at(spread(len(self), 256))

    def nearest(self, own: Tensor, weights: Tensor, k: int) -> Neighbours:
        """The k nearest pictures of descriptors `own` (B, T, P) under `weights`, (B, T, P) or (1, T, P) for all."""
        looked_at = max(CANDIDATES, 4 * k)
        if self.candidates is None or looked_at >= len(self):
            found = self._among_all(own, weights, k)
        else:
            weights = weights.expand_as(own)
            found = self._among(own, weights, k, self.candidates.nearest(own, weights, looked_at))
        found.distances[~weights.any(dim=(1, 2)).expand(len(own))] = torch.inf
        return found

    def _among_all(self, own: Tensor, weights: Tensor, k: int) -> Neighbours:
        """The k nearest of all pictures."""
        distances = torch.empty(len(own), 0)
        positions = torch.empty(len(own), 0, dtype=torch.long)
        for start, stored in self.shards.chunks():
            found = distances_among(weights, own, stored)
            distances = torch.cat([distances, found], dim=1)
            positions = torch.cat(
                [positions, torch.arange(start, start + found.shape[1]).expand(len(found), -1)], dim=1
            )
            distances, order = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
            positions = positions.gather(1, order)
        return Neighbours(distances, positions)

    def _among(self, own: Tensor, weights: Tensor, k: int, positions: Tensor) -> Neighbours:
        """The k nearest of the pictures at `positions` (B, n)."""
        apart = torch.stack([self.apart(*query) for query in zip(weights, own, positions, strict=True)])
        distances, order = apart.topk(k, dim=1, largest=False)
        return Neighbours(distances, positions.gather(1, order))

    def apart(self, weights: Tensor, one: Tensor, positions: Tensor) -> Tensor:
        """Distances (n,) of the pictures at `positions` (n,) from descriptors `one` (T, P) under weights (T, P)."""
        if not len(positions):
            return torch.empty(0)
        return torch.cat([distance(weights, one, self.shards.at(some)) for some in positions.split(2048)])


def distances_among(weights: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Distances (B, n) of `others` (n, T, P) from `own` (B, T, P) under weights (B, T, P) or (1, T, P), all at once.

    What is nearly the same is a little less exact than by `distance`.
    """
    own, weights, others = own.transpose(0, 1), weights.transpose(0, 1), others.transpose(0, 1).mT
    totals = weights.sum(dim=2)[..., None].clamp_min(1e-12)
    first = (weights * own**2).sum(dim=2)[..., None]
    squares = (first - 2 * (weights * own) @ others + weights @ others**2) / totals
    return squares.clamp_min(0).amax(dim=0).sqrt()


def distance(weights: Tensor, one: Tensor, others: Tensor) -> Tensor:
    """Distances (n,) of descriptors `others` (n, T, P) from `one` (T, P) under weights (T, P)."""
    totals = weights.sum(dim=1).clamp_min(1e-12)
    # in place: what is new has to be fetched from the system first
    apart = others - one
    return (apart.mul_(apart).mul_(weights).sum(dim=2) / totals).amax(dim=1).sqrt()
