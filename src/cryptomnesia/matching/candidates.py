"""A first stage of the search in a very large index, by faiss: which pictures are compared exactly.

Every tile of a picture is cut into blocks, and a block is stored as the nearest of sixteen code words, which are
learned from a sample (product quantization, Jégou et al., 2011): 64 bytes a picture instead of six thousand. A query is
compared with the words once, under its own weights. The result is a table, and a picture's estimate is the sum of the
entries that its codes name; faiss adds them up for all pictures in registers (André et al., 2017). Because the table is
made here, the same codes serve whole pictures and every mask: blocks outside of the mask contribute nothing. faiss
divides the queries of a search among threads, but not the codes, so that one query would have one thread. So every
thread has codes of its own.

A distance is the largest over the tiles, but entries can only be added. So where there are several tiles the entry of a
block is the square of its mean squared difference: one block that differs much weighs more than many that differ
slightly.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.files import replacing
from cryptomnesia.matching.shards import Shards, spread
from cryptomnesia.places import exists, local

FILE = "candidates.faiss"
"""Name of the file of codes in the folder of an index."""

CANDIDATES = 4096
"""Pictures that are compared exactly for every query. An index that holds no more needs no candidates."""

BLOCKS = 128
"""Most blocks of a picture, each half a byte; with more tiles than that, every tile is one block."""

WORDS = 16
"""Code words of a block."""

SAMPLE = 256 * WORDS
"""Pictures that words are learned from; faiss uses no more."""

FEWEST = 2**18
"""Fewest codes that get a thread of their own."""

ONE_QUERY = 15
"""Number (`IndexFastScan.implem`) of faiss's loop for one query. Its usual loop takes longer for one than for two."""

SAVED_EVERY = 600.0
"""Seconds between two writes of codes while more are computed."""


class Candidates:
    """The codes of all pictures of an index, in memory."""

    def __init__(self, folder: Path, shape: tuple[int, int], pictures: int) -> None:
        """Read the codes of the index in `folder`.

        Args:
            folder: folder of the index.
            shape: (T, P) of its descriptor.
            pictures: number of its pictures.

        Raises:
            UsageError: if faiss is not installed, or the codes are damaged or do not cover all pictures.
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
        # if the words are unit vectors, the inner product of a picture with a table is the sum of the picture's entries
        units = self._faiss.ProductQuantizer(blocks * WORDS, blocks, 4)
        self._faiss.copy_array_to_vector(np.tile(np.eye(WORDS, dtype=np.float32).ravel(), blocks), units.centroids)
        index.pq, index.d, index.metric_type = units, units.d, self._faiss.METRIC_INNER_PRODUCT
        self._parts = _divided(self._faiss, index, max(min(torch.get_num_threads(), pictures // FEWEST), 1))

    def nearest(self, described: Tensor, weights: Tensor, k: int) -> Tensor:
        """Estimate which pictures are nearest to queries.

        Args:
            described: descriptors of the queries, (B, T, P).
            weights: (B, T, P). A query whose weights are all 0 gets arbitrary pictures.
            k: pictures per query, less than the size of the index.

        Returns:
            Their places, (B, k).
        """
        # the difference of a tile is a mean
        shares = weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-12)
        blocks = (len(described), len(self._words), 1, -1)
        table = (shares.reshape(blocks) * (described.reshape(blocks) - self._words) ** 2).sum(dim=3)
        table = table**2 if self._tiles > 1 else table
        found = self._of_parts(-table.flatten(1).numpy(), k)
        values, places = (torch.from_numpy(np.concatenate(parts, axis=1)) for parts in zip(*found, strict=True))
        if len(found) > 1:
            places = places.gather(1, values.topk(k, dim=1).indices)
        return places.clamp_min(0)

    def _of_parts(self, tables: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every part of the codes the largest inner products with tables (B, ·), and their places, (B, ≤ k) each."""
        threads = torch.get_num_threads() if len(self._parts) == 1 else 1

        def largest(first: int, part: Any) -> tuple[np.ndarray, np.ndarray]:
            # for the thread that this runs in
            self._faiss.omp_set_num_threads(threads)
            part.implem = ONE_QUERY if len(tables) == 1 else 0
            values, places = part.search(tables, min(k, part.ntotal))
            return values, places + first

        if len(self._parts) == 1:
            return [largest(*self._parts[0])]
        with ThreadPoolExecutor(len(self._parts)) as pool:
            return list(pool.map(largest, *zip(*self._parts, strict=True)))


def extend(folder: Path, shards: Shards, progress: Callable[[int, int], None] | None) -> None:
    """Write codes of the pictures of the index in `folder` that have none.

    The words are learned when no picture has a code. They stay the same when pictures are added later; if the index has
    grown into another kind of pictures, delete the file. Codes are saved now and then, and a run that was stopped
    continues with the pictures that have none.

    Args:
        folder: folder of the index.
        shards: descriptors of all its pictures.
        progress: called with the number of pictures that have a code and the number of all.

    Raises:
        UsageError: if faiss is not installed, the index is too small to need candidates, or its codes are damaged.
        OSError: if the codes cannot be written.
    """
    faiss = check_installed(folder)
    index = _read(faiss, folder, shards.shape) if exists(folder / FILE) else _learned(faiss, shards)
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
    """Import faiss for the index in `folder`.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UsageError(
            f"candidates in {folder} need faiss; pip install 'cryptomnesia[faiss]', or search exactly without {FILE}"
        ) from None
    return faiss


def _learned(faiss: Any, shards: Shards) -> Any:
    """An index of faiss with words and no codes."""
    if len(shards) <= CANDIDATES:
        raise UsageError(f"an index of {len(shards)} pictures, not over {CANDIDATES}, needs no faiss; leave it out")
    tiles, numbers = shards.shape
    cuts = max(cut for cut in range(1, max(BLOCKS // tiles, 1) + 1) if numbers % cut == 0)
    index = faiss.IndexPQFastScan(tiles * numbers, tiles * cuts, 4)
    index.train(shards.at(spread(len(shards), SAMPLE)).flatten(1).numpy())
    return index


def _divided(faiss: Any, index: Any, parts: int) -> list[tuple[int, Any]]:
    """An index with codes as at most this many: (place of the first picture, index)."""
    if parts == 1:
        return [(0, index)]
    # faiss stores the codes of `bbs` pictures together
    size = math.ceil(index.ntotal / parts / index.bbs) * index.bbs
    codes = faiss.rev_swig_ptr(index.codes.data(), index.codes.size())
    codes = codes.reshape(index.ntotal2, -1)
    divided = []
    for first in range(0, index.ntotal, size):
        own = codes[first : first + size]
        part = faiss.IndexPQFastScan(index.d, index.pq.M, 4, index.metric_type, index.bbs)
        part.pq, part.is_trained = index.pq, True
        part.ntotal, part.ntotal2 = min(size, index.ntotal - first), len(own)
        part.codes.resize(own.size)
        faiss.rev_swig_ptr(part.codes.data(), own.size)[:] = own.ravel()
        divided.append((first, part))
    return divided


def _read(faiss: Any, folder: Path, shape: tuple[int, int]) -> Any:
    path = folder / FILE
    try:
        index = faiss.read_index(str(local(path)))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{path} cannot be read ({reason}); delete it and run `cryptomnesia index build --faiss`"
        ) from None
    if not isinstance(index, faiss.IndexPQFastScan) or index.d != shape[0] * shape[1]:
        raise UsageError(f"{path} holds no codes of this index; delete it and run `cryptomnesia index build --faiss`")
    return index


def _write(faiss: Any, folder: Path, index: Any) -> None:
    with replacing(folder / FILE) as unfinished:
        try:
            faiss.write_index(index, str(unfinished))
        except RuntimeError as error:
            raise OSError(" ".join(str(error).split())[:200]) from None
