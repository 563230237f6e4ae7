"""Build an index: read the pictures of a source, describe them, write shards.

A build that is run again looks at every item of the source. A picture whose file has the size and times that the index
knows is taken for unchanged. Otherwise its content decides: the same content is not described again, another one is,
and what is in the source no more leaves the index.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryptomnesia.decoding import Readings
from cryptomnesia.errors import UsageError
from cryptomnesia.images import unit
from cryptomnesia.matching import candidates
from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.matching.reading import Picture, read
from cryptomnesia.matching.shards import Row, finished, read_rows, rewrite_shard, write_json, write_shard
from cryptomnesia.matching.sources import NOT_PICTURES, Item, Source, Unchanged

FORMAT = 2
"""Version of the layout of an index."""

Progress = Callable[[int, int], None]
"""Called with the number of items done and the number of all that are known. With candidates every picture is done
twice."""

_TOLD_EVERY = 0.5
"""Seconds between two calls of progress while nothing is read."""

_PORTION = 256
"""Pictures that are described at once."""


@dataclass(frozen=True)
class Changes:
    """What a build did.

    Attributes:
        added: pictures that were not in the index.
        replaced: pictures whose content is another one than before.
        removed: pictures that are in the source no more, or cannot be read any longer.
        unchanged: pictures that were in the index already.
    """

    added: int = 0
    replaced: int = 0
    removed: int = 0
    unchanged: int = 0


@dataclass
class _Build:
    """A build under way.

    Attributes:
        folder: of the index.
        about: what the index says of itself.
        descriptor: of the index.
        readings: of the index.
        before: what the index said of itself before.
        known: name → what the index knows of that picture.
        kept: names of pictures whose rows stay.
        touched: names whose stamp or caption has changed → row with the new ones.
        skipped: name → why it is left out.
        rows: what has been described and is in no shard yet.
        new: names of pictures that have been described.
        begun: whether the index has been marked as incomplete.
    """

    folder: Path
    about: dict[str, Any]
    descriptor: Descriptor
    readings: Readings
    before: dict[str, Any]
    known: dict[str, Row] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    touched: dict[str, Row] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[np.ndarray, Row]] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    begun: bool = False

    @cached_property
    def known_by_shard(self) -> dict[str, list[str]]:
        """Shard or table of the source → names of its pictures in the index."""
        return _by_shard(self.known, self.before.get("stamps", {}))

    @cached_property
    def skipped_by_shard(self) -> dict[str, list[str]]:
        """Shard or table of the source → names of what was left out of it."""
        return _by_shard(self.before.get("skipped", {}), self.before.get("stamps", {}))


def build(
    source: Source,
    folder: Path,
    descriptor: Descriptor,
    readings: Readings,
    *,
    faiss: bool,
    shard: int,
    workers: int | None,
    progress: Progress | None,
) -> Changes:
    """Bring the index in `folder` up to date with a source; arguments as for `ImageIndex.build`.

    Raises:
        UsageError: if there are no pictures, or `folder` holds an index of another source, descriptor or readings.
        OSError: if the index cannot be written.
    """
    about = {
        "format": FORMAT,
        "descriptor": descriptor.name,
        "source": source.root,
        "readings": asdict(readings),
        "faiss": faiss,
        "complete": False,
    }
    before = _checked_before(folder, about, descriptor)
    made = _Build(folder, about, descriptor, readings, before)
    rows = [row for stem in finished(folder) for row in read_rows(stem)]
    made.known |= {row.name: row for row in rows}
    if len(rows) != before.get("rows"):
        # a build was stopped, or a shard is lost: every shard of the source has to be looked into
        before["stamps"] = {}
    done, last_report = 0, time.monotonic()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for portion in _portions(source.items(before.get("stamps", {})), min(_PORTION, shard)):
            described = _take(made, portion, pool)
            done += len(portion)
            # what is unchanged goes by quickly
            if progress is not None and (described or time.monotonic() - last_report >= _TOLD_EVERY):
                progress(done, max(done, source.total))
                last_report = time.monotonic()
            while len(made.rows) >= shard:
                _flush(made, shard)
    if progress is not None:
        progress(done, max(done, source.total))
    if not made.kept and not made.new:
        _refuse_empty(source, made.skipped)
    if made.rows:
        _flush(made, len(made.rows))
    changes = _clean(made)
    made.about |= {
        "skipped": made.skipped,
        "stamps": source.stamps,
        "rows": sum(len(read_rows(stem)) for stem in finished(folder)),
        "complete": True,
    }
    write_json(folder / "index.json", made.about)
    return changes


def read_about(folder: Path) -> dict[str, Any]:
    """Read what an index says about itself: format, descriptor, source, readings, what was skipped, whether complete.

    Raises:
        UsageError: if there is no index, it is damaged, or it has the format of another version.
    """
    again = "make one with `cryptomnesia index build`"
    try:
        about: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        version = about["format"]
    except FileNotFoundError:
        raise UsageError(f"no index in {folder}; {again}") from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UsageError(f"{folder} is not an index ({error}); {again}") from None
    if version != FORMAT:
        raise UsageError(f"{folder} has index format {version}, this version reads {FORMAT}; build it anew")
    kinds = {
        "descriptor": str,
        "source": str,
        "readings": dict,
        "skipped": dict,
        "complete": bool,
        "stamps": dict,
        "rows": int,
    }
    wrong = [name for name, kind in kinds.items() if not isinstance(about.get(name, kind()), kind)]
    if missing := [name for name in ("descriptor", "source", "complete") if name not in about] + wrong:
        raise UsageError(f"{folder} is not an index (its {missing[0]} is missing or damaged); build it anew")
    return {"readings": {}, "skipped": {}, "stamps": {}, **about}


def check_descriptor(folder: Path, about: dict[str, Any], descriptor: Descriptor) -> None:
    """Check that the index in `folder`, which says `about` itself, was built with this descriptor.

    Raises:
        UsageError: if it was built with another one.
    """
    if about["descriptor"] != descriptor.name:
        raise UsageError(
            f"{folder} was built with the descriptor {about['descriptor']}, asked for was {descriptor.name}; "
            "build another"
        )


def _checked_before(folder: Path, about: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """What the index in `folder` says of itself, {} if there is none; checks that it can be continued."""
    # a build that was killed may have left half a file
    for leftover in folder.glob("*.unfinished"):
        leftover.unlink()
    if not (folder / "index.json").exists():
        (folder / candidates.FILE).unlink(missing_ok=True)
        return {}
    before = read_about(folder)
    check_descriptor(folder, before, descriptor)
    if before["source"] != about["source"]:
        raise UsageError(f"{folder} is an index of {before['source']}, not of {about['source']}; give another folder")
    if before["readings"] != about["readings"]:
        had = ", ".join(f"{name} {value}" for name, value in before["readings"].items())
        raise UsageError(f"{folder} was built with other readings ({had}); give these, or another folder")
    return before


def _take(made: _Build, portion: list[Item | Unchanged], pool: ThreadPoolExecutor) -> bool:
    """Take a portion of a source into the build; returns whether any picture of it had to be read."""
    fresh: dict[str, Item] = {}
    for item in portion:
        row = made.known.get(item.name)
        if isinstance(item, Unchanged):
            made.kept.update(made.known_by_shard.get(item.name, ()))
            for name in made.skipped_by_shard.get(item.name, ()):
                made.skipped[name] = made.before["skipped"][name]
        elif item.problem:
            made.skipped[item.name] = item.problem
        elif item.name in made.kept or item.name in made.new or item.name in fresh:
            made.skipped[f"{item.name} (again)"] = "a second picture of the same name"
        elif row is not None and row.stamp and (row.stamp, row.caption) == (item.stamp, item.caption):
            made.kept.add(item.name)
        else:
            fresh[item.name] = item
    if fresh:
        _begin(made)
        digests = [made.known[name].digest if name in made.known else "" for name in fresh]
        side = made.descriptor.side
        found = pool.map(lambda item, digest: read(item, side, made.readings, digest), fresh.values(), digests)
        _describe(made, list(zip(fresh.values(), found, strict=True)))
    return bool(fresh)


def _describe(made: _Build, found: list[tuple[Item, Picture]]) -> None:
    """Describe pictures that were read, and note those that cannot be or have not changed."""
    pictures, rows = [], []
    for item, one in found:
        if one.problem:
            made.skipped[item.name] = one.problem
        elif not one.squares:
            made.kept.add(item.name)
            made.touched[item.name] = Row(item.name, "", item.caption, item.stamp, one.digest)
        else:
            made.new.add(item.name)
            for reading, array in one.squares.items():
                pictures.append(unit(array))
                rows.append(Row(item.name, reading, item.caption, item.stamp, one.digest))
    if pictures:
        described = made.descriptor.describe(torch.stack(pictures)).half().numpy()
        made.rows += zip(described, rows, strict=True)


def _begin(made: _Build) -> None:
    """Mark the index as incomplete before anything in it changes."""
    if not made.begun:
        # without stamps, so that a build which continues this one looks into every shard of the source
        write_json(made.folder / "index.json", made.about)
        made.begun = True


def _flush(made: _Build, count: int) -> None:
    """Write the first `count` rows as a shard; the readings of a picture stay together."""
    while count < len(made.rows) and made.rows[count][1].name == made.rows[count - 1][1].name:
        count += 1
    number = max((int(names.stem) for names in finished(made.folder)), default=-1) + 1
    values, rows = zip(*made.rows[:count], strict=True)
    write_shard(made.folder / f"{number:05}", np.stack(values), list(rows))
    del made.rows[:count]


def _clean(made: _Build) -> Changes:
    """Take rows that count no more out of the shards, and write new stamps and captions."""
    last: dict[str, Path] = {}
    stems = list(finished(made.folder))
    for stem in stems:
        last |= {row.name: stem for row in read_rows(stem)}
    current = made.kept | made.new
    for stem in stems:
        rows = read_rows(stem)
        kept = [row.name in current and last[row.name] == stem for row in rows]
        changed = [row.name in made.touched for row in rows]
        if all(kept) and not any(changed):
            continue
        _begin(made)
        if not all(kept):
            # positions move, so the codes of candidates are made anew
            (made.folder / candidates.FILE).unlink(missing_ok=True)
        wanted = [made.touched[row.name].read_as(row.reading) if row.name in made.touched else row for row in rows]
        rewrite_shard(stem, wanted, kept)
    known = set(made.known)
    return Changes(
        added=len(made.new - known),
        replaced=len(made.new & known),
        removed=len(known - current),
        unchanged=len(made.kept),
    )


def _refuse_empty(source: Source, skipped: dict[str, str]) -> None:
    """Refuse a source in which no picture can be read."""
    pictures = {name: why for name, why in skipped.items() if not why.startswith(NOT_PICTURES)}
    if not pictures:
        raise UsageError(
            f"no pictures in {source.root}; give a folder of pictures, tar shards, or tables with a column of pictures"
        )
    name = min(pictures)
    raise UsageError(
        f"none of {len(pictures)} pictures in {source.root} can be read, {name} for one ({pictures[name]}); give others"
    )


def _by_shard(names: Iterable[str], shards: Mapping[str, str]) -> dict[str, list[str]]:
    """Shard → those of some names that are the shard's own or lie in it."""
    found: dict[str, list[str]] = {}
    for name in names:
        for cut in (*(place for place, letter in enumerate(name) if letter in "/#"), len(name)):
            if name[:cut] in shards:
                found.setdefault(name[:cut], []).append(name)
                break
    return found


def _portions(items: Iterator[Item | Unchanged], size: int) -> Iterator[list[Item | Unchanged]]:
    portion: list[Item | Unchanged] = []
    for item in items:
        portion.append(item)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion
