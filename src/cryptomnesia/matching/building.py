"""Build an index: find what is new in a source, have it described, take out what is there no more.

A build that is run again looks at every item of the source. A picture whose file has the size and times that the index
knows is taken for unchanged. Otherwise its content decides: the same content is not described again, another one is,
and what is in the source no more leaves the index.

On a Ray cluster this process looks through the source and hands out units of what may have changed. Shards and tables
are read by the processes of the cluster, so their content does not pass through here.
"""

import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from PIL import Image

from cryptomnesia.decoding import Readings
from cryptomnesia.engine import LOCAL, OnRay
from cryptomnesia.errors import UsageError
from cryptomnesia.matching import candidates, describing
from cryptomnesia.matching.about import FILE, FORMAT, check_descriptor, read_about
from cryptomnesia.matching.describing import Describer, Found, Unit, can_read, check_only
from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.matching.shards import Row, finished, numbers, read_rows, rewrite_shard, write_json
from cryptomnesia.matching.sources import AGAIN, NOT_PICTURES, Item, Packed, Source, Unchanged
from cryptomnesia.places import exists, is_remote

Progress = Callable[[int, int], None]
"""Called with the number of items done and the number of all that are known. With candidates every picture is done
twice."""

_TOLD_EVERY = 0.5
"""Seconds between two calls of progress while nothing is read."""

_PICTURE = 2**15
"""Usual bytes of a picture. A unit has the bytes of as many pictures as a shard, or more if its last part is large."""

_THREADS, _THREADS_PER_GPU = 4, 16
"""Threads of a process of a cluster that read and decode: on its core while others wait for the storage, and for a
GPU, which a core could not keep busy."""


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
        before: what the index said of itself before.
        old: names of the shards that were there before.
        found: what has become of the pictures.
        dropped: name of a new shard → names of pictures in it that do not count.
        begun: whether the index has been marked as incomplete.
    """

    folder: Path
    about: dict[str, Any]
    before: dict[str, Any]
    old: set[str]
    found: Found
    dropped: dict[str, set[str]] = field(default_factory=dict)
    begun: bool = False

    @cached_property
    def known_names(self) -> list[str]:
        """Names of the pictures in the index, sorted."""
        return sorted(self.found.known)

    @cached_property
    def skipped_names(self) -> list[str]:
        """Names of what was left out before, sorted."""
        return sorted(self.before.get("skipped", {}))

    def begin(self) -> None:
        """Mark the index as incomplete before anything in it changes."""
        if not self.begun:
            # without stamps, so that a build which continues this one looks into every shard of the source
            write_json(self.folder / FILE, self.about)
            self.begun = True


def build(
    source: Source,
    folder: Path,
    descriptor: Descriptor,
    readings: Readings,
    *,
    faiss: bool,
    shard: int,
    workers: int | None,
    engine: str,
    progress: Progress | None,
) -> Changes:
    """Bring the index in `folder` up to date with a source; arguments as for `ImageIndex.build`.

    Raises:
        UsageError: if there are no pictures, `folder` holds an index of another source, descriptor or readings, or a
            machine of the cluster does not see what it needs.
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
    shards = list(finished(folder))
    first = max((numbers(names)[0] for names in shards), default=-1) + 1
    name = f"{first:05}-{secrets.randbelow(10**9):09}"
    rows = [row for names in shards for row in read_rows(names)]
    found = Found({row.name: row for row in rows})
    made = _Build(folder, about | {"build": name}, before, {names.stem for names in shards}, found)
    if len(rows) != before.get("rows"):
        # a build was stopped, or a shard is lost: every shard of the source has to be looked into
        before["stamps"] = {}
    parts = _parts(made, source)
    if engine == LOCAL:
        describer = Describer(folder, descriptor, readings, shard, workers, name)
        names = describer.names(0) if is_remote(folder) else (f"{number:05}" for number in count(first))
        steps = describer.described(parts, found, names, made.begin)
    else:
        gpu = str(getattr(descriptor, "device", "cpu")).startswith("cuda")
        threads = _THREADS_PER_GPU if gpu else _THREADS
        describer = Describer(folder, descriptor, readings, shard, threads, name)
        steps = _on_ray(made, describer, parts, engine, workers, gpu)
    last_report = time.monotonic()
    # an error ends the threads or processes at once
    with closing(steps):
        for described in steps:
            # what is unchanged goes by quickly
            if progress is not None and (described or time.monotonic() - last_report >= _TOLD_EVERY):
                progress(found.done, max(found.done, source.total))
                last_report = time.monotonic()
    if progress is not None:
        progress(found.done, max(found.done, source.total))
    if not found.kept and not found.new:
        _refuse_empty(source, found.skipped)
    if made.begun:
        check_only(folder, name)
    size = _clean(made)
    if made.begun:
        check_only(folder, name)
    made.about = about | {"skipped": found.skipped, "stamps": source.stamps, "rows": size, "complete": True}
    write_json(folder / FILE, made.about)
    known = found.known.keys()
    return Changes(
        added=len(found.new - known),
        replaced=len(found.new & known),
        removed=len(known - found.kept - found.new),
        unchanged=len(found.kept),
    )


def _checked_before(folder: Path, about: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """What the index in `folder` says of itself, {} if there is none; checks that it can be continued."""
    # a build that was killed may have left half a file
    for leftover in folder.glob("*.unfinished"):
        leftover.unlink()
    if not exists(folder / FILE):
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


def _parts(made: _Build, source: Source) -> Iterator[Item | Packed]:
    """The parts of a source but for unchanged shards and tables, whose pictures stay as they are."""
    found = made.found
    for part in source.parts(made.before.get("stamps", {})):
        if not isinstance(part, Unchanged):
            yield part
            continue
        found.kept.update(name for name in _within(made.known_names, part.name) if name not in found.new)
        found.skipped |= {name: made.before["skipped"][name] for name in _within(made.skipped_names, part.name)}
        found.done += 1


def _on_ray(
    made: _Build,
    describer: Describer,
    parts: Iterable[Item | Packed],
    engine: str,
    workers: int | None,
    gpu: bool,
) -> Generator[bool, None, None]:
    """Have the processes of a Ray cluster describe what may have changed; yields after every unit."""
    units = _units(made, parts, describer.shard)
    # no process is started for an index that is up to date
    if (first := next(units, None)) is None:
        return
    with OnRay(describer, engine, workers=workers, gpu=gpu) as do:
        for found in do(chain([first], units)):
            _join(made, found)
            yield True


def _units(made: _Build, parts: Iterable[Item | Packed], shard: int) -> Iterator[Unit]:
    """Units of about a shard's pictures of what may have changed. What need not be read is noted."""
    held: list[Item | Packed] = []
    number, size = 0, 0
    # the end, None, hands out what is held
    for part in chain(parts, [None]):
        if isinstance(part, Item) and made.found.settles(part):
            made.found.done += 1
            continue
        if part is not None:
            held.append(part)
            size += _size(part)
        if held and (part is None or size >= shard * _PICTURE):
            made.begin()
            yield Unit(number, held, _known(made, held))
            held, number, size = [], number + 1, 0


def _size(part: Item | Packed) -> int:
    """Bytes of a part, by which units are made. A picture in a file of its own has the usual number."""
    if isinstance(part, Packed):
        return part.size
    content = part.content
    held = len(content) if isinstance(content, bytes) else 0
    if isinstance(content, Image.Image):
        held = content.width * content.height * len(content.getbands())
    return max(held, _PICTURE)


def _known(made: _Build, parts: list[Item | Packed]) -> dict[str, Row]:
    """What the index knows of the pictures of some parts."""
    within = (_within(made.known_names, part.name) if isinstance(part, Packed) else [part.name] for part in parts)
    known = made.found.known
    return {name: known[name] for name in chain.from_iterable(within) if name in known}


def _within(names: list[str], shard: str) -> Iterator[str]:
    """Those of some sorted names that are a shard's or table's own, or lie in it."""
    for first, after in ((shard, f"{shard}\0"), (f"{shard}#", f"{shard}$"), (f"{shard}/", f"{shard}0")):
        yield from names[bisect_left(names, first) : bisect_left(names, after)]


def _join(made: _Build, unit: Found) -> None:
    """Take what has become of the pictures of a unit into the build.

    Raises:
        UsageError: if the process could not read a file that this one can, so that pictures would be missing.
    """
    if unseen := next(filter(can_read, unit.unseen), None):
        raise UsageError(
            f"a machine of the cluster cannot read {unseen}, which this machine can; give pictures that all machines "
            "share, under the same path"
        )
    found = made.found
    # a name that two parts have: the row of a table, and a file that is called so
    again = {name for name in unit.kept | unit.new if found.has(name)}
    if again:
        made.dropped |= dict.fromkeys(unit.shards, again)
    found.kept |= unit.kept - again
    found.new |= unit.new - again
    found.touched |= {name: row for name, row in unit.touched.items() if name not in again}
    found.skipped |= unit.skipped | {f"{name} (again)": AGAIN for name in again}
    found.shards |= unit.shards
    found.done += unit.done


def _clean(made: _Build) -> int:
    """Take rows that count no more out of the shards, and write new stamps and captions; returns how many rows stay."""
    found, size = made.found, 0
    shards = _all_shards(made)
    last: dict[str, str] = {}
    for names in shards:
        if names.stem in made.old:
            last |= {row.name: names.stem for row in read_rows(names)}
    for names in shards:
        name = names.stem
        if name in found.shards and name not in made.dropped:
            size += found.shards[name]
            continue
        rows = read_rows(names)
        if name in made.dropped:
            kept = [row.name not in made.dropped[name] for row in rows]
        else:
            # a shard that is neither old nor of this build was left by a process that died, and no row of it counts
            kept = [row.name in found.kept and last.get(row.name) == name for row in rows]
        size += sum(kept)
        if all(kept) and not any(row.name in found.touched for row in rows):
            continue
        made.begin()
        if not all(kept):
            # positions move, so the codes of candidates are made anew
            (made.folder / candidates.FILE).unlink(missing_ok=True)
        touched = found.touched
        wanted = [touched[row.name].read_as(row.reading) if row.name in touched else row for row in rows]
        rewrite_shard(names, wanted, kept)
    return size


def _all_shards(made: _Build) -> list[Path]:
    """The finished shards in their order, those that other machines have written among them.

    Raises:
        UsageError: if one of them does not appear here.
    """
    until = time.monotonic() + describing.PATIENCE
    while True:
        shards = list(finished(made.folder))
        missing = made.found.shards.keys() - {names.stem for names in shards}
        if not missing:
            return shards
        if time.monotonic() > until:
            raise UsageError(
                f"a machine of the cluster has written the shard {made.folder / min(missing)}, which this machine does "
                "not see; give a folder that all machines share, or a URL such as s3://bucket/index"
            )
        time.sleep(1)


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
