"""An index of pictures on disk: built once, in shards, searched exactly, or among candidates where there are very many.

A build that is stopped, or run again after pictures were added, goes on with those that no shard knows.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.matching import candidates
from cryptomnesia.matching.descriptors import Descriptor, middle, square
from cryptomnesia.matching.shards import Shards, finished, spread, write_json, write_shard

FORMAT = 1
"""Version of the layout of an index."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""What counts as a picture."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is in such files. Pillow goes by their content, and knows formats that make it run other programs."""

Progress = Callable[[int, int], None]
"""Called with the number of pictures done and their total; of an index with candidates all are done twice."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest pictures of each of B queries, nearest first.

    Attributes:
        distances: (B, k), in the descriptor's units; ∞ where a query had nothing to be compared by.
        positions: (B, k) int64, places in `ImageIndex.paths`.
    """

    distances: Tensor
    positions: Tensor


NEAREST = 50
"""Neighbours that say what distance is usual (Carlini et al., 2023)."""

USUAL = 0.5
"""Share of the usual distance within which a picture is a copy (their α)."""


NULL = 99
"""Pictures of the index that say how often a match under a mask comes by chance; enough for a rate of 1%."""


@dataclass(frozen=True)
class Matches:
    """The nearest picture of each of B queries, and whether it is nearer than pictures usually are.

    Attributes:
        paths: in `ImageIndex.paths`.
        distances: (B,), in the descriptor's units; ∞ where a query had nothing to be compared by.
        relative: (B,): the distance over `USUAL` times the mean distance of the `NEAREST` next pictures that are no
            copies of the nearest one. At most 1: the query reproduces it. ∞ where the index holds fewer than 10 such.
            Next ones that candidates leave out make it too small; benchmarks/matching.py measures by how much.
        p_values: (B,) float64: of queries under a mask, how usual so small a `relative` is for pictures of the index
            under the same mask, (1 + #{null ≤ relative})/(n + 1) for n pictures; 1 where `relative` exceeds 1, NaN
            without masks.
    """

    paths: list[str]
    distances: Tensor
    relative: Tensor
    p_values: Tensor

    def reproduced(self, rate: float = 0.01) -> Tensor:
        """Whether each query reproduces its nearest picture, under a mask with a p-value of at most `rate`, (B,)."""
        return (self.relative <= 1) & ~(self.p_values > rate)


class ImageIndex:
    """A finished index.

    Attributes:
        descriptor: by which pictures are compared.
        paths: of the pictures, relative to the folder that was indexed.
        skipped: path → why that file is not in the index.
    """

    def __init__(self, folder: Path, descriptor: Descriptor) -> None:
        """Open the index in `folder`.

        Raises:
            UsageError: if there is none, it is of another version, or made with another descriptor, or its candidates
                cannot be used.
        """
        about = _about(folder, descriptor)
        if not about["complete"]:
            raise UsageError(f"the index {folder} is not finished; run `cryptomnesia index build` again to go on")
        self.folder = folder
        self.descriptor = descriptor
        self.source = str(about["source"])
        self.skipped: dict[str, str] = dict(about["skipped"])
        self._shards = Shards(folder, descriptor.shape)
        self.paths = self._shards.paths
        self._candidates = None
        if (folder / candidates.FILE).exists():
            self._candidates = candidates.Candidates(folder, descriptor.shape, len(self))

    @classmethod
    def build(
        cls,
        images: Path,
        folder: Path,
        descriptor: Descriptor,
        *,
        shard: int = 16_384,
        faiss: bool = False,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> "ImageIndex":
        """Describe every picture under `images`, or those that the index in `folder` does not know yet.

        Pictures that cannot be read, and links that lead out of `images`, are skipped and named in `skipped`. Where
        another process is building the same index, this waits for it.

        Args:
            images: a folder, searched with all folders in it.
            folder: of the index.
            descriptor: by which pictures are to be compared.
            shard: pictures per file.
            faiss: whether a search is to look at candidates alone (`cryptomnesia.matching.candidates`): for more than
                ten million pictures. An index that has candidates keeps them up to date.
            workers: threads that decode pictures, as many as there are cores by default.
            progress: see `Progress`.

        Raises:
            UsageError: for a folder without pictures, an index of something else, or candidates without faiss.
        """
        if not images.is_dir():
            raise UsageError(f"no folder {images}; give the folder of the training images")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                faiss |= (folder / candidates.FILE).exists()
                if faiss:
                    candidates.check_installed(folder)
                _build(images, folder, descriptor, shard, workers, progress)
                if faiss:
                    candidates.extend(folder, Shards(folder, descriptor.shape), progress)
                return cls(folder, descriptor)
        except OSError as error:
            raise UsageError(f"cannot write the index {folder} ({error}); make room or give another folder") from None

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

    def search(self, pictures: Tensor, *, masks: Tensor | None = None, k: int = 1) -> Neighbours:
        """The k nearest pictures of each of B queries, those of its candidates in an index that has them.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            masks: (B, h, w) bool or in [0, 1]; a query is compared only where its mask is set, in the
                tiles of which at least half is.
            k: neighbours; fewer are found in a smaller index.
        """
        return self._nearest(*self._described(pictures, masks), k)

    def match(self, pictures: Tensor, *, masks: Tensor | None = None, null: int = NULL) -> Matches:
        """The nearest picture of each query, and whether it is reproduced.

        In a space of pictures distances alone say little: plain pictures lie close to everything. So the distance to
        the nearest is compared with those to the next ones (Carlini et al., 2023, arXiv:2301.13188). Where a training
        image is there many times, the next ones are copies of it, and left out: those nearer to it than the query, or
        than a quarter of its median distance to pictures from all over the index.

        That rule was made for whole pictures. Under a mask little may be left to compare, a plain corner say, of which
        any index holds many. So the same mask is laid over pictures of the index, each is compared with all that are no
        copies of it as a whole, and what they reach by chance is the null of the query's p-value. Plain regions match
        by chance far more often than others, so the null is those pictures whose contrast under the mask is nearest to
        the query's. Those that share the matched region with the nearest picture are left out: they would repeat it, as
        a template's copies do. The mask comes from the query, so the p-value is a yardstick rather than an error rate.

        Args:
            pictures: see `search`.
            masks: see `search`.
            null: pictures under every mask, of up to twenty times as many from all over the index.
        """
        own, weights = self._described(pictures, masks)
        distances, relative, nearest = self._relative(own, weights)
        # a share such as 1/20 is to be compared with .05 as it is
        p_values = torch.full_like(relative, torch.nan if masks is None else 1, dtype=torch.float64)
        for row in (relative <= 1).nonzero()[:, 0].tolist() if masks is not None else ():
            some = self._without_copies(weights[row], nearest[row : row + 1], spread(len(self), 20 * null))
            apart = self._contrast(weights[row], self._shards.at(some)) - self._contrast(
                weights[row], own[row : row + 1]
            )
            some = some[apart.abs().argsort()[:null]]
            _, chance, _ = self._relative(self._shards.at(some), weights[row].expand(len(some), -1, -1), some)
            known = chance[chance.isfinite()]
            p_values[row] = (1 + (known <= relative[row]).sum().item()) / (len(known) + 1)
        return Matches([self.paths[each] for each in nearest.tolist()], distances, relative, p_values)

    def _relative(
        self, own: Tensor, weights: Tensor, themselves: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distance of the nearest picture, `Matches.relative` and its place for descriptors `own` under `weights`.

        Pictures of the index itself, at the places `themselves` (B,), are not compared with their copies.
        """
        anywhere = spread(len(self), 256)
        everywhere = torch.ones_like(weights[0])
        distances, relative = torch.full((2, len(own)), torch.inf)
        nearest = torch.zeros(len(own), dtype=torch.long)
        k, left = 4 * NEAREST, torch.arange(len(own))
        while len(left):
            found = self._nearest(own[left], weights[left], k)
            short = []
            for row, apart, positions in zip(left.tolist(), found.distances, found.positions, strict=True):
                if themselves is not None:
                    whole = self._apart(everywhere, own[row], positions)
                    others = whole > self._apart(everywhere, own[row], anywhere).median() / 4
                    others &= positions != themselves[row]
                    apart, positions = apart[others], positions[others]
                usual = apart[:0]
                if len(apart) and apart[0].isfinite():
                    distances[row], nearest[row] = apart[0], positions[0]
                    first = self._shards.at(positions[:1])[0]
                    copies = self._apart(weights[row], first, anywhere).median() / 4
                    among = self._apart(weights[row], first, positions[1:])
                    usual = apart[1:][among > apart[0].maximum(copies)][:NEAREST]
                if len(usual) >= 10:
                    relative[row] = apart[0] / (USUAL * usual.mean())
                if len(usual) < NEAREST and weights[row].any():
                    short.append(row)
            if k >= len(self):
                break
            left, k = torch.tensor(short, dtype=torch.long), 4 * k
        return distances, relative, nearest

    def _contrast(self, weights: Tensor, values: Tensor) -> Tensor:
        """Standard deviation of descriptors (n, T, P) from their mean colour under weights (T, P), (n,)."""
        pixels, shares = (each.unflatten(-1, (3, -1)) for each in (values, weights))
        level = (shares * pixels).sum(dim=(1, 3), keepdim=True) / shares.sum(dim=(0, 2), keepdim=True).clamp_min(1e-12)
        return ((shares * (pixels - level) ** 2).sum(dim=(1, 2, 3)) / shares.sum().clamp_min(1e-12)).sqrt()

    def _without_copies(self, weights: Tensor, nearest: Tensor, positions: Tensor) -> Tensor:
        """Those of `positions` that are no copies of the picture at `nearest` (1,) under weights (T, P)."""
        first = self._shards.at(nearest)[0]
        copies = self._apart(weights, first, spread(len(self), 256)).median() / 4
        return positions[self._apart(weights, first, positions) > copies]

    def _nearest(self, own: Tensor, weights: Tensor, k: int) -> Neighbours:
        """The k nearest pictures of descriptors `own` under `weights`, both (B, T, P)."""
        looked_at = max(candidates.CANDIDATES, 4 * k)
        if self._candidates is None or looked_at >= len(self):
            found = self._among_all(own, weights, k)
        else:
            found = self._among(own, weights, k, self._candidates.nearest(own, weights, looked_at))
        found.distances[~weights.any(dim=(1, 2))] = torch.inf
        return found

    def _among_all(self, own: Tensor, weights: Tensor, k: int) -> Neighbours:
        """The k nearest of all pictures."""
        own, weights = own.transpose(0, 1), weights.transpose(0, 1)
        totals = weights.sum(dim=2)[..., None].clamp_min(1e-12)
        first, linear = (weights * own**2).sum(dim=2)[..., None], weights * own
        distances = torch.empty(own.shape[1], 0)
        positions = torch.empty(own.shape[1], 0, dtype=torch.long)
        for start, stored in self._shards.chunks():
            other = stored.transpose(0, 1).mT  # (T, P, n)
            squares = (first - 2 * linear @ other + weights @ other**2) / totals
            found = squares.clamp_min(0).amax(dim=0).sqrt()
            distances = torch.cat([distances, found], dim=1)
            positions = torch.cat(
                [positions, torch.arange(start, start + found.shape[1]).expand(len(found), -1)], dim=1
            )
            distances, order = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
            positions = positions.gather(1, order)
        return Neighbours(distances, positions)

    def _among(self, own: Tensor, weights: Tensor, k: int, positions: Tensor) -> Neighbours:
        """The k nearest of the pictures at `positions` (B, n)."""
        apart = torch.stack([self._apart(*query) for query in zip(weights, own, positions, strict=True)])
        distances, order = apart.topk(k, dim=1, largest=False)
        return Neighbours(distances, positions.gather(1, order))

    def _apart(self, weights: Tensor, one: Tensor, positions: Tensor) -> Tensor:
        """Distances of some pictures of the index from descriptors `one` (T, P), under weights (T, P)."""
        totals = weights.sum(dim=1).clamp_min(1e-12)
        return torch.cat(
            [
                ((weights * (self._shards.at(some) - one) ** 2).sum(dim=2) / totals).amax(dim=1).sqrt()
                for some in positions.split(2048)
            ]
        )

    def _described(self, pictures: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Descriptors of queries and the weights that they are compared by, both (B, T, P)."""
        own = self.descriptor.describe(torch.stack([square(each, self.descriptor.side) for each in pictures]))
        weights = torch.ones_like(own) if masks is None else self.descriptor.weights(middle(masks))
        # a sliver of a tile would match anything
        return own, weights * (weights.mean(dim=2, keepdim=True) >= 0.5)


def _build(
    images: Path, folder: Path, descriptor: Descriptor, shard: int, workers: int | None, progress: Progress | None
) -> None:
    if (folder / "index.json").exists():
        about = _about(folder, descriptor)
        if about["source"] != str(images.resolve()):
            raise UsageError(f"{folder} is an index of {about['source']}, not of {images}; give another folder")
    else:
        (folder / candidates.FILE).unlink(missing_ok=True)
    about = {"format": FORMAT, "descriptor": descriptor.name, "source": str(images.resolve()), "complete": False}
    files, skipped = _pictures(images)
    known = {path for names in finished(folder) for path in json.loads(names.read_text(encoding="utf-8"))}
    if not files:
        raise UsageError(f"no pictures in {images}; known are {', '.join(sorted(SUFFIXES))}")
    if gone := known - set(files):
        raise UsageError(
            f"{len(gone)} pictures of the index are gone from {images}, {min(gone)} for one; build it anew"
        )
    write_json(folder / "index.json", {**about, "skipped": skipped})
    left = [path for path in files if path not in known]
    done = len(files) - len(left)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        number = max((int(names.stem) for names in finished(folder)), default=-1)
        for paths in _portions(left, shard):
            described, kept = [], []
            for some in _portions(paths, 256):
                found = list(pool.map(lambda path: _read(images / path, descriptor.side), some))
                good = [picture for picture in found if isinstance(picture, Tensor)]
                kept += [path for path, picture in zip(some, found, strict=True) if isinstance(picture, Tensor)]
                skipped |= {path: why for path, why in zip(some, found, strict=True) if isinstance(why, str)}
                if good:
                    described.append(descriptor.describe(torch.stack(good)).half().numpy())
                done += len(some)
                if progress is not None:
                    progress(done, len(files))
            if kept:
                number += 1
                write_shard(folder / f"{number:05}", np.concatenate(described), kept)
    if not any(finished(folder)):
        raise UsageError(f"none of {len(files)} pictures in {images} can be read, {min(skipped)} for one; give others")
    write_json(folder / "index.json", {**about, "skipped": skipped, "complete": True})


def _pictures(images: Path) -> tuple[list[str], dict[str, str]]:
    """The paths of all pictures in the folder, sorted, and of those left out with the reason."""
    root = images.resolve()
    files, skipped = [], {}
    for where, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(where, name)
            relative = path.relative_to(root).as_posix()
            # unlike resolve, realpath bears links that lead in a circle
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                skipped[relative] = "a link that leads out of the folder"
            elif path.suffix.lower() in SUFFIXES:
                if path.is_file():
                    files.append(relative)
                elif path.is_symlink() and not path.is_dir():
                    skipped[relative] = "a link that leads nowhere"
    return sorted(files), skipped


def _read(path: Path, side: int) -> Tensor | str:
    """The square picture, or why there is none."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return square(picture, side)
    # Pillow's decoders raise whatever a broken file leads them to
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _portions(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _about(folder: Path, descriptor: Descriptor) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        version, name = about["format"], about["descriptor"]
    except FileNotFoundError:
        raise UsageError(f"no index in {folder}; make one with `cryptomnesia index build`") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UsageError(f"{folder} is not an index ({error}); make one with `cryptomnesia index build`") from None
    if version != FORMAT:
        raise UsageError(f"{folder} has index format {version}, this version reads {FORMAT}; build it anew")
    if name != descriptor.name:
        raise UsageError(
            f"{folder} was built with the descriptor {name}, asked for was {descriptor.name}; build another"
        )
    return about
