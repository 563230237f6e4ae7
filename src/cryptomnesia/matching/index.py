"""An index of pictures on disk: built once, in shards, searched exactly, or among candidates where there are very many.

A build that is stopped, or run again after pictures were added, goes on with those that no shard knows.
"""

from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.matching import candidates
from cryptomnesia.matching.building import Progress, build, check_folder, read_about
from cryptomnesia.matching.descriptors import Descriptor, middle, square
from cryptomnesia.matching.reproduction import Matches, match
from cryptomnesia.matching.search import Neighbours, Search
from cryptomnesia.matching.shards import Shards


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
        about = read_about(folder, descriptor)
        if not about["complete"]:
            raise UsageError(f"the index {folder} is not finished; run `cryptomnesia index build` again to go on")
        self.folder = folder
        self.descriptor = descriptor
        self.source = str(about["source"])
        self.skipped: dict[str, str] = dict(about["skipped"])
        shards = Shards(folder, descriptor.shape)
        self.paths = shards.paths
        coded = (folder / candidates.FILE).exists()
        self._search = Search(shards, candidates.Candidates(folder, descriptor.shape, len(shards)) if coded else None)

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
        check_folder(images)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                faiss |= (folder / candidates.FILE).exists()
                if faiss:
                    candidates.check_installed(folder)
                build(images, folder, descriptor, shard, workers, progress)
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
        return self._search.nearest(*self._described(pictures, masks), k)

    def match(self, pictures: Tensor, *, masks: Tensor | None = None, rate: float = 0.01) -> Matches:
        """The nearest picture of each query, and whether it is reproduced (`cryptomnesia.matching.reproduction`).

        Args:
            pictures: see `search`.
            masks: see `search`.
            rate: share of pictures that may come as near to another one by chance. A match takes the search for
                1/rate − 1 pictures, and cannot be told from chance in an index of fewer.
        """
        return match(self._search, self.descriptor, *self._described(pictures, masks), rate)

    def _described(self, pictures: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Descriptors (B, T, P) of queries and the weights that they are compared by, (1, T, P) without masks."""
        own = self.descriptor.describe(torch.stack([square(each, self.descriptor.side) for each in pictures]))
        weights = torch.ones_like(own[:1]) if masks is None else self.descriptor.weights(middle(masks))
        # a sliver of a tile would match anything
        return own, weights * (weights.mean(dim=2, keepdim=True) >= 0.5)
