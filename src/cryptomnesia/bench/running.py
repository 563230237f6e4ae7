"""Make a bench, in this process or by processes on the machines of a Ray cluster."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic

from filelock import Timeout

from cryptomnesia.bench.base import BENCH, Bench, Made, Stage
from cryptomnesia.engine import LOCAL, Here, OnRay, check_engine
from cryptomnesia.errors import UsageError
from cryptomnesia.places import locked

Progress = Callable[[str, float, int], None]
"""Called with (what, done, in all)."""


def run(
    make: Callable[[], Bench[Made]],
    folder: Path,
    *,
    engine: str = LOCAL,
    workers: int | None = None,
    gpu: bool | None = None,
    progress: Progress | None = None,
) -> Made:
    """Make a bench, or go on with the one in the folder.

    Args:
        make: makes the bench, whose folder is `folder`. On Ray this process does not call it. Every process of the
            cluster gets a copy of it by pickle, and calls it once.
        folder: of the bench; on Ray one that all machines share, or a URL of fsspec.
        engine: `local` for this process, or the Ray cluster whose machines do the work, as `OnRay` takes it.
        workers: processes on Ray; see `OnRay`.
        gpu: whether a process on Ray needs a GPU; see `OnRay`.
        progress: called while images are made.

    Returns:
        The packet, which is also written to the folder.

    Raises:
        UsageError: if the bench refuses its settings, the folder holds another bench or is seen by some machines alone,
            another process of this machine works in it, or there is no such engine.
    """
    check_engine(engine)
    if engine == LOCAL and workers is not None:
        raise UsageError(f"got {workers} workers, and a bench is one process on this machine; give the engine ray, too")
    total, left = Counter[str](), Counter[str]()

    def tell(name: str, made: float = 0) -> None:
        if progress is not None:
            progress(name, total[name] - left[name] + made, total[name])

    doing: Any = nullcontext(Here(_Work(make, tell)))
    if engine != LOCAL:
        doing = OnRay(_Work(make), engine, workers=workers, gpu=gpu)
    with doing as do:
        (found,) = do([0])
        if not (folder / BENCH).exists():
            raise UsageError(
                f"a machine of the cluster has begun the bench in {folder}, which this machine does not see; give a "
                "folder that all machines share, or a URL such as s3://bucket/bench"
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
    """The work on a bench in one of the processes that share it.

    Attributes:
        make: makes the bench.
        tell: called with the name of a stage and the number of images of a part that are done.
    """

    make: Callable[[], Bench[Made]]
    tell: Callable[[str, float], None] | None = None

    def __call__(self, unit: int | tuple[Stage, int]) -> list[Stage] | Made | tuple[str, int]:
        """Do a unit of the work.

        Args:
            unit: a stage and the number of a part of it, which is made; or a number.

        Returns:
            The name of the stage and the number of images in the part. For the number n the stages that `Bench.stages`
            yields after n others, or the packet if there are no more.
        """
        if isinstance(unit, int):
            found = next(islice(self._bench.stages(), unit, None), None)
            return self._bench.packet() if found is None else found
        stage, number = unit
        self._bench.part(stage, number, partial(self.tell or _silent, stage.name))
        return stage.name, len(stage.part(number))

    @cached_property
    def _bench(self) -> Bench[Made]:
        """The bench, begun."""
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
        raise UsageError(
            f"another process works on the bench in {folder}; wait until it ends, or give another folder"
        ) from None
