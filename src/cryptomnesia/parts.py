"""Work that is made in parts, by this process, by several, or by the machines of a Ray cluster.

A part is a file in the folder of the work, which is written whole. Work that was stopped lacks some of these files, and
goes on by making them. A part does not depend on who makes it, when, or how often.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from filelock import Timeout

from cryptomnesia.engine import LOCAL, Here, OnRay, Processes, check_engine
from cryptomnesia.errors import UsageError
from cryptomnesia.files import claim
from cryptomnesia.places import locked, names

Progress = Callable[[str, float, int], None]
"""Called with (what, done, in all)."""

Report = Callable[[float], None]
"""Called with the number of units of a part that are done."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Stage:
    """Parts in which the same is done with different units, images for instance.

    Attributes:
        name: what is made, as the progress bar calls it.
        pattern: path of the file of a part in the folder, with a place for the number of the part.
        folder: of the work.
        rows: numbers of the units.
        size: units per part.
    """

    name: str
    pattern: str
    folder: Path = field(repr=False)
    rows: Sequence[int] = field(repr=False)
    size: int = field(repr=False)

    @property
    def files(self) -> list[Path]:
        """The file of every part."""
        return [self.folder / self.pattern.format(number) for number in range(-(-len(self.rows) // self.size))]

    def part(self, number: int) -> Sequence[int]:
        """The numbers of the units of a part."""
        return self.rows[number * self.size : (number + 1) * self.size]

    def missing(self) -> list[int]:
        """The numbers of the parts that are not done."""
        files = self.files
        found = names(files[0].parent, files[0].suffix) if files else {}
        return [number for number, file in enumerate(files) if file.name not in found]


@dataclass(kw_only=True)
class InParts(ABC, Generic[Made]):
    """Work that is made in parts.

    Attributes:
        folder: made if missing. If it holds the same work, stopped, that one goes on.
    """

    folder: Path

    claimed: ClassVar[str]
    """Name of the file of the folder with the settings."""

    what: ClassVar[str]
    """What the work is called in messages, "a bench" for instance."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must not change when the work goes on, as JSON values."""
        raise NotImplementedError

    @abstractmethod
    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UsageError: saying what.
        """

    def begin(self) -> None:
        """Make the folder the folder of this work, or see that it is.

        Raises:
            UsageError: if the folder holds other work, or for what `check` refuses, which leaves no folder.
        """
        self.check()
        claim(self.folder / self.claimed, self.settings, f"{self.what} with other settings")

    @abstractmethod
    def stages(self) -> Iterator[list[Stage]]:
        """Yield stages that can be made at the same time, once all that were yielded before are done."""

    @abstractmethod
    def part(self, stage: Stage, number: int, report: Report) -> None:
        """Make a part of a stage, and write its file."""

    @abstractmethod
    def result(self) -> Made:
        """Make the result from the files of all parts, and write it."""


def run(
    make: Callable[[], InParts[Made]],
    folder: Path,
    *,
    engine: str = LOCAL,
    workers: int | None = None,
    gpu: bool | None = None,
    progress: Progress | None = None,
) -> Made:
    """Make work that is made in parts, or go on with what is in the folder.

    Args:
        make: makes the work, whose folder is `folder`. With one process on this machine it is called once, in this
            process; else by every process that works, which gets a copy of it by pickle.
        folder: of the work; on Ray one that all machines share, or a URL of fsspec.
        engine: `local` for this machine, or the Ray cluster whose machines do the work, as `OnRay` takes it.
        workers: processes; one on this machine unless given, and on Ray see `OnRay`.
        gpu: whether a process on Ray needs a GPU; see `OnRay`.
        progress: called while parts are made.

    Returns:
        The result, which is also written to the folder.

    Raises:
        UsageError: if the work refuses its settings, the folder holds other work or is seen by some machines alone,
            another process of this machine works in it, a process dies, or there is no such engine.
    """
    check_engine(engine)
    total, left = Counter[str](), Counter[str]()

    def tell(name: str, made: float = 0) -> None:
        if progress is not None:
            progress(name, total[name] - left[name] + made, total[name])

    doing: Any = nullcontext(Here(_Work(make, tell)))
    if engine != LOCAL:
        doing = OnRay(_Work(make), engine, workers=workers, gpu=gpu)
    elif workers is not None and workers != 1:
        doing = Processes(_Work(make), workers)
    with doing as do:
        (found,) = do([0])
        if not names(folder, ".json"):
            raise UsageError(
                f"a machine of the cluster has begun to work in {folder}, which this machine does not see; give a "
                "folder that all machines share, or a URL such as s3://bucket/folder"
            )
        with alone(folder):
            for number in count(1):
                if not isinstance(found, list):
                    break
                parts = [(stage, part) for stage in found for part in stage.missing()]
                for stage in found:
                    total[stage.name] += len(stage.rows)
                for stage, part in parts:
                    left[stage.name] += len(stage.part(part))
                for name, made in do(parts):
                    left[name] -= made
                    tell(name)
                (found,) = do([number])
            return found


@dataclass
class _Work(Generic[Made]):
    """The work in one of the processes that share it.

    Attributes:
        make: makes the work.
        tell: called with the name of a stage and the number of units of a part that are done.
    """

    make: Callable[[], InParts[Made]]
    tell: Callable[[str, float], None] | None = None

    def __call__(self, unit: int | tuple[Stage, int]) -> list[Stage] | Made | tuple[str, int]:
        """Do a unit of the work.

        Args:
            unit: a stage and the number of a part of it, which is made; or a number.

        Returns:
            The name of the stage and the number of units in the part. For the number n the stages that
            `InParts.stages` yields after n others, or the result if there are no more.
        """
        if isinstance(unit, int):
            found = next(islice(self._begun.stages(), unit, None), None)
            return self._begun.result() if found is None else found
        stage, number = unit
        self._begun.part(stage, number, partial(self.tell or _silent, stage.name))
        return stage.name, len(stage.part(number))

    @cached_property
    def _begun(self) -> InParts[Made]:
        """The work, begun."""
        made = self.make()
        made.begin()
        return made


def _silent(*_: object) -> None:
    """Take reports of progress and do nothing with them."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in a folder that no other process of this machine works in.

    Raises:
        UsageError: if one does.
    """
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except Timeout:
        raise UsageError(f"another process works in {folder}; wait until it ends, or give another folder") from None
