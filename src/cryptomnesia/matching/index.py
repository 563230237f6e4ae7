"""An index of pictures on disk: built once, in shards; searched exactly, or among candidates if it is very large.

A build that was stopped, or that is run again, describes only the pictures that are new or have another content.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.decoding import Readings
from cryptomnesia.engine import LOCAL, check_engine
from cryptomnesia.errors import UsageError
from cryptomnesia.images import middle, square
from cryptomnesia.matching import candidates
from cryptomnesia.matching.about import FILE, check_descriptor, read_about
from cryptomnesia.matching.building import Changes, Progress, build
from cryptomnesia.matching.describing import unwritable
from cryptomnesia.matching.descriptors import Descriptor, Tiles
from cryptomnesia.matching.distances import counted
from cryptomnesia.matching.duplicates import Cluster, duplicates
from cryptomnesia.matching.reproduction import Matches, reproduction
from cryptomnesia.matching.search import Neighbours, Search
from cryptomnesia.matching.shards import Shards
from cryptomnesia.matching.sources import source_of
from cryptomnesia.places import absolute, exists, is_remote, locked, make, place


class ImageIndex:
    """A finished index.

    Attributes:
        folder: folder of the index.
        descriptor: what pictures are compared by.
        source: the folder of pictures that was indexed.
        paths: names of the pictures, relative to `source`. A picture that can be read in several ways is here once for
            each of them, so that positions of `search` are positions in this list.
        skipped: name → reason why that file is not in the index.
        changes: what the build did that returned this index; None for an index that was opened.
    """

    def __init__(self, folder: str | Path, descriptor: Descriptor | None = None) -> None:
        """Open the index in `folder`.

        Args:
            folder: folder of the index, or its URL; from a store this machine copies the index once.
            descriptor: the one that the index was built with. It may be left out for `Tiles`, whose settings are
                read from the index.

        Raises:
            UsageError: if there is no index, if it is unfinished, damaged or of another version, if it was built with
                another descriptor, or if its candidates cannot be used.
        """
        folder = place(folder)
        about = read_about(folder)
        self.descriptor = _tiles(folder, about["descriptor"]) if descriptor is None else descriptor
        check_descriptor(folder, about, self.descriptor)
        if not about["complete"]:
            raise UsageError(f"the index {folder} is not finished; run `cryptomnesia index build` again to go on")
        self.folder = folder
        self.source = str(about["source"])
        self.skipped: dict[str, str] = dict(about["skipped"])
        shape = self.descriptor.shape
        shards = Shards(folder, shape)
        if len(shards) != about.get("rows", len(shards)) or not len(shards):
            raise UsageError(f"the index {folder} has lost a shard; run `cryptomnesia index build` again")
        self.paths = shards.paths
        self.changes: Changes | None = None
        coded = exists(folder / candidates.FILE)
        self._search = Search(shards, candidates.Candidates(folder, shape, len(shards)) if coded else None)

    @classmethod
    def build(
        cls,
        images: str | Path | Iterable[Any],
        folder: str | Path,
        descriptor: Descriptor | None = None,
        *,
        readings: Readings | None = None,
        shard: int = 16_384,
        faiss: bool = False,
        workers: int | None = None,
        engine: str = LOCAL,
        progress: Progress | None = None,
    ) -> "ImageIndex":
        """Bring the index in `folder` up to date with training pictures, and open it.

        A picture that is new or whose content has changed is described, and one that is there no more leaves the index;
        `changes` of the index says how many. Whatever cannot be read is left out and named in `skipped`. If another
        process is building the same index, this one waits for it.

        Args:
            images: a folder, searched with all its subfolders; a tar shard of WebDataset; a Parquet or Arrow file; a
                pattern of them such as `shards/{000..010}.tar`; a list of all these; or an iterable of pictures: PIL
                images, tensors (3, H, W) in [0, 1], arrays (H, W, 3) uint8, paths, tuples (name, picture) or (name,
                picture, caption), or mappings with an `image`. A file is a picture if its content is one; its name does
                not matter.
            folder: folder of the index, or its URL.
            descriptor: what pictures will be compared by, tiles by default.
            readings: in which ways pictures with a rotation in EXIF or transparency are read; in all ways by default,
                so that the one of the trainer is among them.
            shard: readings per shard.
            faiss: whether searches compare candidates only (`cryptomnesia.matching.candidates`), which is meant for
                more than ten million pictures. An index that has candidates keeps them up to date.
            workers: threads that decode pictures, as many as there are cores by default. On Ray it is the number of
                processes: one for every core by default, or for every GPU if the descriptor computes on GPUs.
            engine: `local` for this machine, or the Ray cluster that describes the pictures: `ray` or
                `ray://HOST:10001`, as `cryptomnesia.engine.OnRay` takes it. Its machines read the pictures, and SSCD's
                file, under the same paths as this one, and write to `folder`.
            progress: see `cryptomnesia.matching.building.Progress`.

        Raises:
            UsageError: if there are no pictures, if `folder` holds an index of another source, descriptor or readings,
                if it cannot be written, if candidates are asked for and faiss is not installed, or if a machine of the
                cluster does not see the pictures or the folder.
        """
        check_engine(engine)
        if workers is not None and workers < 1:
            raise UsageError(f"got {workers} workers; give at least 1")
        folder, descriptor = place(folder), descriptor or Tiles()
        source = source_of(images, None if is_remote(folder) else folder)
        try:
            make(folder)
            with locked(folder / ".lock"):
                wanted = faiss or _has_candidates(folder)
                if wanted:
                    candidates.check_installed(folder)
                made = build(
                    source,
                    absolute(folder),
                    descriptor,
                    readings or Readings(),
                    faiss=wanted,
                    shard=shard,
                    workers=workers,
                    engine=engine,
                    progress=progress,
                )
                shards = Shards(folder, descriptor.shape)
                # an index that has become small needs none any longer
                if faiss or (wanted and len(shards) > candidates.CANDIDATES):
                    candidates.extend(folder, shards, progress)
                index = cls(folder, descriptor)
        except OSError as error:
            raise unwritable(folder, error) from None
        index.changes = made
        return index

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._search.shards.firsts)

    @property
    def captioned(self) -> int:
        """The number of pictures that have a caption."""
        shards = self._search.shards
        return sum(bool(shards.caption(place)) for place in shards.firsts.tolist())

    def search(
        self,
        pictures: Tensor | Sequence[Tensor | Image.Image],
        *,
        masks: Tensor | Sequence[Tensor] | None = None,
        k: int = 1,
    ) -> Neighbours:
        """Find the k nearest pictures of B queries; in an index with candidates the nearest of these.

        Args:
            pictures: B pictures, PIL images or tensors (3, H, W) in [0, 1], or one tensor (B, 3, H, W).
            masks: a mask (h, w) per picture, bool or in [0, 1], of any resolution and with the picture's proportions.
                Only what lies in the mask is compared, in the tiles of which at least half lies in it.
            k: neighbours of every query; a smaller index gives fewer.

        Raises:
            UsageError: if the number of masks is not that of the pictures, or the descriptor takes no masks.
        """
        return self._search.nearest(*self._described(pictures, masks), k)

    def match(
        self,
        pictures: Tensor | Sequence[Tensor | Image.Image],
        *,
        masks: Tensor | Sequence[Tensor] | None = None,
        fpr: float = 0.01,
    ) -> Matches:
        """Find the nearest picture of every query and decide whether the query reproduces it.

        `cryptomnesia.matching.reproduction` says how. A query that is near to a picture takes 1/`fpr` − 1 further
        searches. In an index of fewer pictures nothing is found to be reproduced.

        Args:
            pictures: as for `search`.
            masks: as for `search`.
            fpr: share of ordinary pictures that may be found to reproduce another one by chance, in (0, 1).

        Raises:
            UsageError: as for `search`.
        """
        return reproduction(self._search, self.descriptor, *self._described(pictures, masks), fpr)

    def duplicates(self, *, progress: Progress | None = None) -> list[Cluster]:
        """Clusters of near-identical pictures, which are the known cause of memorization, the largest first.

        `cryptomnesia.matching.duplicates` says what counts as near-identical.

        Args:
            progress: called with the number of readings that have been compared and the number of all.
        """
        return duplicates(self._search, self.descriptor, progress)

    def _described(
        self, pictures: Tensor | Sequence[Tensor | Image.Image], masks: Tensor | Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Descriptors (B, T, P) of queries, and their weights, (B, T, P) or (1, T, P) for all queries."""
        squares = torch.stack([square(picture, self.descriptor.side) for picture in pictures])
        described = self.descriptor.describe(squares)
        if masks is None:
            return described, torch.ones_like(described[:1])
        if len(masks) != len(pictures):
            raise UsageError(f"got {len(masks)} masks for {len(pictures)} pictures; give a mask for every picture")
        weights = torch.cat([self.descriptor.weights(middle(mask.cpu())[None]) for mask in masks])
        return described, counted(weights)


def _has_candidates(folder: Path) -> bool:
    """Whether an index in `folder` has candidates, or had them before positions moved."""
    if exists(folder / candidates.FILE):
        return True
    return exists(folder / FILE) and read_about(folder).get("faiss") is True


def _tiles(folder: Path, name: str) -> Tiles:
    """The tiles that the index in `folder`, built with the descriptor `name`, was built with."""
    tiles = Tiles.named(name)
    if tiles is None:
        example = "ImageIndex(folder, SSCD(file))" if name.startswith("sscd ") else "ImageIndex(folder, descriptor)"
        raise UsageError(
            f"{folder} was built with the descriptor {name}, which the index does not contain; open it with {example}"
        )
    return tiles
