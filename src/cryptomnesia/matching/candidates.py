"""Which pictures of a very large index are worth an exact look: a first stage by faiss.

Every tile of a picture is cut into blocks, and a block is kept as the nearest of sixteen code words learned from a
sample (product quantization, Jégou et al., 2011): 64 bytes a picture instead of six thousand. A query is compared with
the words once, under its own weights. What that gives is a table, and a picture's estimate is the sum of the entries
that its codes name, which faiss adds up for all pictures in registers (André et al., 2017). Because the table is made
here, one set of codes serves whole pictures and every mask: blocks outside of the mask are worth nothing.

A distance is the largest over the tiles, but entries can only be added. So where there are several tiles a block's
entry is its squared mean square difference: one block that is far off weighs more than many that are slightly off.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.matching.shards import Shards, spread

FILE = "candidates.faiss"
"""In the folder of an index."""

CANDIDATES = 4096
"""Pictures that are compared exactly for every query; an index that holds no more needs no candidates."""

BLOCKS = 128
"""Of a picture, at most, and half a byte each; or one of every tile where there are more of those."""

WORDS = 16

SAMPLE = 256 * WORDS
"""Pictures that words are learned from; faiss looks at no more."""

SAVED_EVERY = 600.0
"""Seconds between two writes of codes that are not done yet."""


class Candidates:
    """The codes of all pictures of an index, in memory."""

    def __init__(self, folder: Path, shape: tuple[int, int], pictures: int) -> None:
        """Read the codes of the index in `folder`, which holds so many `pictures`, with descriptors of shape (T, P).

        Raises:
            UsageError: without faiss, or for codes that are damaged or not those of all pictures.
        """
        self._faiss = check_installed(folder)
        index = _read(self._faiss, folder, shape)
        if index.ntotal != pictures:
            raise UsageError(
                f"{folder / FILE} knows {index.ntotal} of {pictures} pictures; run `cryptomnesia index build` again"
            )
        self._tiles, blocks = shape[0], index.pq.M
        # (blocks, WORDS, numbers of a block)
        self._words = torch.from_numpy(self._faiss.vector_to_array(index.pq.centroids)).view(blocks, WORDS, -1)
        # with unit vectors for words, a picture's inner product with a query is a sum of the query's own entries
        units = self._faiss.ProductQuantizer(blocks * WORDS, blocks, 4)
        self._faiss.copy_array_to_vector(np.tile(np.eye(WORDS, dtype=np.float32).ravel(), blocks), units.centroids)
        index.pq, index.d, index.metric_type = units, units.d, self._faiss.METRIC_INNER_PRODUCT
        self._index = index

    def nearest(self, own: Tensor, weights: Tensor, k: int) -> Tensor:
        """Places (B, k) of the pictures that seem nearest to queries `own` (B, T, P) under `weights` (B, T, P).

        Fewer than all pictures. Those of a query without weights mean nothing.
        """
        # every tile counts by its mean
        shares = weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-12)
        blocks = (len(own), len(self._words), 1, -1)
        table = (shares.reshape(blocks) * (own.reshape(blocks) - self._words) ** 2).sum(dim=3)
        table = table**2 if self._tiles > 1 else table
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        _, places = self._index.search(-table.flatten(1).numpy(), k)
        return torch.from_numpy(places).clamp_min(0)


def extend(folder: Path, shards: Shards, progress: Callable[[int, int], None] | None) -> None:
    """Write codes of the pictures of the index in `folder` that have none; where none has, learn the words first.

    What is done is saved now and then, so that a run that was stopped goes on. Words stay as they were first learned:
    for an index that has grown into another kind of pictures, delete the file.

    Raises:
        UsageError: without faiss, for an index that needs none, or codes that are damaged or cannot be written.
    """
    faiss = check_installed(folder)
    index = _read(faiss, folder, shards.shape) if (folder / FILE).exists() else _learned(faiss, shards)
    faiss.omp_set_num_threads(torch.get_num_threads())
    saved = time.monotonic()
    for start in range(index.ntotal, len(shards), 2048):
        index.add(shards.at(torch.arange(start, min(start + 2048, len(shards)))).flatten(1).numpy())
        if index.ntotal == len(shards) or time.monotonic() - saved >= SAVED_EVERY:
            _write(faiss, folder, index)
            saved = time.monotonic()
        if progress is not None:
            progress(index.ntotal, len(shards))


def check_installed(folder: Path) -> Any:
    """Import faiss.

    Raises:
        UsageError: if it is not there.
    """
    try:
        import faiss
    except ImportError:
        raise UsageError(
            f"candidates in {folder} need faiss; pip install 'cryptomnesia[faiss]', or search exactly without {FILE}"
        ) from None
    return faiss


def _learned(faiss: Any, shards: Shards) -> Any:
    """Words without codes."""
    if len(shards) <= CANDIDATES:
        raise UsageError(f"an index of {len(shards)} pictures, not over {CANDIDATES}, needs no faiss; leave it out")
    tiles, numbers = shards.shape
    cuts = max(cut for cut in range(1, max(BLOCKS // tiles, 1) + 1) if numbers % cut == 0)
    index = faiss.IndexPQFastScan(tiles * numbers, tiles * cuts, 4)
    index.train(shards.at(spread(len(shards), SAMPLE)).flatten(1).numpy())
    return index


def _read(faiss: Any, folder: Path, shape: tuple[int, int]) -> Any:
    path = folder / FILE
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{path} cannot be read ({reason}); delete it and run `cryptomnesia index build --faiss`"
        ) from None
    if not isinstance(index, faiss.IndexPQFastScan) or index.d != shape[0] * shape[1]:
        raise UsageError(f"{path} holds no codes of this index; delete it and run `cryptomnesia index build --faiss`")
    return index


def _write(faiss: Any, folder: Path, index: Any) -> None:
    unfinished = (folder / FILE).with_suffix(".unfinished")
    try:
        faiss.write_index(index, str(unfinished))
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())[:200]) from None
    unfinished.replace(folder / FILE)
