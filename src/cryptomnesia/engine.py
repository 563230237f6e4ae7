"""Where the units of a long command are done: in this process, in several, or on the machines of a Ray cluster.

A unit is a few seconds to minutes of work with a result that does not depend on who does it, when, or how often. Ray
starts the processes, gives each of them a GPU or a core, moves what they need to their machines, and notices when one
dies. Every process holds one copy of the work, a model for instance, and gets one unit at a time, so nothing piles up.
A unit whose process died goes to another one. Processes are added while the cluster has room for them.
"""

import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any, Generic, TypeVar

from cryptomnesia.errors import CryptomnesiaError, UsageError

logger = logging.getLogger("cryptomnesia")

LOCAL = "local"
"""The engine that is this process."""

DEATHS = 5
"""Processes that may die over the same unit before the unit is held to be the cause."""

WORKERS, WORKERS_PER_CORE = 16, 4
"""Processes that any machine may have, and those that it may have per core; many more would take all its memory."""

_ROOM_EVERY = 10.0
"""Seconds between two looks at how many processes the cluster has room for."""

_PATIENCE = 60.0
"""Seconds without a process until a warning says so."""

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def check_engine(engine: str) -> None:
    """Refuse the name of an engine that does not exist, or that is not installed.

    Raises:
        UsageError: saying what to give or to install.
    """
    if engine == LOCAL:
        return
    if engine != "ray" and not engine.startswith("ray://"):
        raise UsageError(f"got the engine {engine}; give local, ray, or the address of a cluster as ray://HOST:10001")
    _ray()


class Here(Generic[Unit, Result]):
    """The engine that does all units in this process, in their order."""

    def __init__(self, work: Callable[[Unit], Result]) -> None:
        """Take the work: called with a unit, it returns the unit's result."""
        self.work = work

    def __call__(self, units: Iterable[Unit]) -> Iterator[Result]:
        """Yield the result of every unit."""
        return map(self.work, units)


class Processes(Generic[Unit, Result]):
    """The engine that does units in processes of this machine, which share its cores, as a context manager."""

    def __init__(self, work: Callable[[Unit], Result], workers: int) -> None:
        """Describe the processes; they start in the `with` block.

        Args:
            work: that pickle can copy to another process, where it is called with one unit after the other.
            workers: processes.

        Raises:
            UsageError: for no process, or so many that the machine would have no memory left.
        """
        cores = os.cpu_count() or 1
        most = max(WORKERS, WORKERS_PER_CORE * cores)
        if not 1 <= workers <= most:
            raise UsageError(f"got {workers} workers, each a process, on {cores} cores; give 1 to {most}")
        self._work, self._workers = work, workers
        self._said: set[str] = set()

    def __enter__(self) -> "Processes[Unit, Result]":
        """Start the processes."""
        import torch

        self._pool = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(self._work, max(1, torch.get_num_threads() // self._workers)),
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the processes; after an error also those that still do something."""
        if kind is None:
            self._pool.shutdown(cancel_futures=True)
            return
        running = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        for process in running:
            process.join()

    def __call__(self, units: Iterable[Unit]) -> Iterator[Result]:
        """Yield the results of units in the order in which they are done.

        Raises:
            CryptomnesiaError: that the work raised.
            UsageError: if a process dies.
        """
        left, awaited = iter(units), set[Future[Any]]()
        try:
            while True:
                awaited |= {self._pool.submit(_do, unit) for unit in islice(left, self._workers - len(awaited))}
                if not awaited:
                    return
                done, awaited = wait(awaited, return_when=FIRST_COMPLETED)
                for future in done:
                    result, messages = future.result()
                    say(messages, self._said)
                    if isinstance(result, CryptomnesiaError):
                        raise result
                    yield result
        except BrokenProcessPool:
            raise UsageError(
                "a process of this machine died over its part of the work; see whether there is enough memory, or give "
                "fewer workers (and call it under `if __name__ == '__main__'` in a script); the same command goes on"
            ) from None


_process: "_Process | None" = None
"""What runs in a process that `Processes` has started."""


def _start(work: Callable[[Any], Any], threads: int) -> None:
    """Make this process one that takes units; it ends with the process that has started it."""
    global _process
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    _process = _Process(work, str(Path.cwd()))


def _do(unit: Any) -> tuple[Any, list[tuple[int, str]]]:
    """What `_Process.do` returns for a unit."""
    assert _process is not None
    return _process.do(unit)


class OnRay(Generic[Unit, Result]):
    """The engine that does units in the processes of a Ray cluster, as a context manager.

    Attributes:
        work: called in every process, with a unit.
    """

    def __init__(
        self,
        work: Callable[[Unit], Result],
        engine: str = "ray",
        *,
        workers: int | None = None,
        gpu: bool | None = None,
    ) -> None:
        """Describe the processes; they start in the `with` block.

        Args:
            work: that pickle can copy to another process, where it is called with one unit after the other.
            engine: `ray` is the cluster that the environment variable RAY_ADDRESS or this machine has, and a new one of
                this machine if there is none; `ray://HOST:10001` is the cluster at that address.
            workers: processes; one for each GPU of the cluster unless given, or for each core if there is no GPU.
            gpu: whether every process needs a GPU; if the cluster has one unless given.
        """
        self.work = work
        self._engine, self._workers, self._gpu = engine, workers, gpu
        self._ray: Any = None
        self._begun = False
        self._printing = ExitStack()
        # a process that can take a unit
        self._free: list[Any] = []
        # what is awaited → the process, and its unit; None while it starts
        self._awaited: dict[Any, tuple[Any, Unit | None]] = {}
        self._said: set[str] = set()
        self._looked, self._lived = 0.0, time.monotonic()
        self._failed = 0

    def __enter__(self) -> "OnRay[Unit, Result]":
        """Connect to the cluster, and start as many processes as it has room for.

        Raises:
            UsageError: if there is no cluster at the address, or it has no room for a process.
        """
        self._ray = ray = _ray()
        # Ray prints what happens to its processes where a command prints its JSON
        self._printing.enter_context(redirect_stdout(sys.stderr))
        self._begun = not ray.is_initialized()
        if self._begun:
            address = None if self._engine == "ray" else self._engine
            # nobody who audits a model has agreed to send figures on its use to the makers of Ray
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            # every way of not being there has an error of its own
            except Exception as error:
                self._printing.close()
                reason = str(error).strip().split("\n")[0]
                raise UsageError(f"cannot reach a Ray cluster at {self._engine} ({reason}); start one") from None
        if self._gpu is None:
            self._gpu = ray.cluster_resources().get("GPU", 0) >= 1
        self._held = ray.put(self.work)
        try:
            if not self._room():
                needed = "GPU" if self._gpu else "core"
                raise UsageError(f"the Ray cluster has no free {needed} for a process; add a machine, or give --device")
            self._grow()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes, whatever they are doing."""
        try:
            for actor in [*self._free, *(actor for actor, _ in self._awaited.values())]:
                # without a connection Ray raises what it likes, and ends the processes of a lost driver itself
                with suppress(Exception):
                    self._ray.kill(actor)
            self._free.clear()
            self._awaited.clear()
            if self._begun:
                with suppress(Exception):
                    self._ray.shutdown()
        finally:
            self._printing.close()

    def __call__(self, units: Iterable[Unit]) -> Iterator[Result]:
        """Yield the results of units in the order in which they are done.

        Raises:
            CryptomnesiaError: that the work raised.
            UsageError: for a unit over which one process after the other dies, and if none can start.
        """
        left, again, deaths = iter(units), list[Unit](), Counter[str]()
        coming = next(left, None)
        while coming is not None or again or any(unit is not None for _, unit in self._awaited.values()):
            while self._free and (again or coming is not None):
                if again:
                    unit = again.pop()
                else:
                    unit, coming = coming, next(left, None)
                actor = self._free.pop()
                self._awaited[actor.do.remote(unit)] = actor, unit
            for reference in self._next():
                actor, unit = self._awaited.pop(reference)
                try:
                    result, messages = self._ray.get(reference)
                except self._deaths as error:
                    with suppress(Exception):
                        # it may still live behind a broken network
                        self._ray.kill(actor)
                    if unit is None:
                        self._not_started(error)
                    else:
                        # another one may start at once
                        self._looked = 0.0
                        again.append(unit)
                        deaths[repr(unit)] += 1
                        if deaths[repr(unit)] >= DEATHS:
                            raise UsageError(
                                f"{DEATHS} processes died, one after the other, over the same part of the work "
                                f"({repr(unit)[:80]}); see whether they have enough memory"
                            ) from None
                    continue
                self._failed = 0
                self._free.append(actor)
                say(messages, self._said)
                if isinstance(result, CryptomnesiaError):
                    raise result
                if unit is not None:
                    yield result

    @property
    def _deaths(self) -> tuple[type[Exception], ...]:
        """The errors by which Ray says that a process, or the result that it held, is gone."""
        errors = self._ray.exceptions
        return errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError, errors.NodeDiedError

    def _next(self) -> list[Any]:
        """What is done, after some seconds at most; processes are started before.

        Raises:
            UsageError: if the connection to the cluster is lost.
        """
        try:
            self._grow()
            if not self._living() and time.monotonic() - self._lived >= _PATIENCE:
                self._lived = math.inf
                logger.warning(
                    "no process of the Ray cluster runs, and none can start; waiting for room (`ray status` says what "
                    "its machines are busy with)"
                )
            if not self._awaited:
                time.sleep(1)
                return []
            return self._ray.wait(list(self._awaited), num_returns=1, timeout=_ROOM_EVERY)[0]
        except ConnectionError as error:
            raise UsageError(
                f"the connection to the Ray cluster is lost ({str(error).splitlines()[0]}); what is done is kept, and "
                "the same command goes on with it"
            ) from None

    def _living(self) -> bool:
        """Whether a process is there that has started."""
        living = bool(self._free) or any(unit is not None for _, unit in self._awaited.values())
        if living:
            self._lived = time.monotonic()
        return living

    def _room(self) -> int:
        """The number of processes that the cluster has room for, those that are there included."""
        found = int(self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 0))
        return found if self._workers is None else min(found, self._workers)

    def _grow(self) -> None:
        """Start the processes for which there is room and that are not there, from time to time."""
        if self._free or time.monotonic() - self._looked < _ROOM_EVERY:
            return
        self._looked = time.monotonic()
        actor = self._ray.remote(num_cpus=1, num_gpus=int(bool(self._gpu)))(_Process)
        for _ in range(self._room() - len(self._free) - len(self._awaited)):
            made = actor.remote(self._held, str(Path.cwd()))
            self._awaited[made.ready.remote()] = made, None

    def _not_started(self, error: Exception) -> None:
        """Count processes that did not start.

        Raises:
            UsageError: if that happens again and again, and no other process runs.
        """
        self._failed += 1
        if self._failed >= DEATHS and not self._living():
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # a traceback ends with the error, everything else begins with what happened
            reason = next((line for line in reversed(lines) if re.match(r"\w+(Error|Exception): ", line)), lines[0])
            raise UsageError(
                f"no process can start on the Ray cluster ({reason[:200]}); its machines need the same Python, the "
                "same version of cryptomnesia, and memory"
            ) from None


class _Process:
    """What runs in a process of the cluster."""

    def __init__(self, work: Callable[[Any], Any], folder: str) -> None:
        """Take the work, and go to the folder of the command, which relative paths are relative to, if it is here."""
        if Path(folder).is_dir():
            os.chdir(folder)
        self._work = work

    def ready(self) -> tuple[None, list[tuple[int, str]]]:
        """Answer as soon as the process runs."""
        return None, []

    def do(self, unit: Any) -> tuple[Any, list[tuple[int, str]]]:
        """The result of a unit, or the error that this library raised on purpose, and what was logged meanwhile."""
        with _collected() as messages:
            try:
                result = self._work(unit)
            # Ray would wrap it into another one, with a traceback of another machine
            except CryptomnesiaError as error:
                result = error
        return result, messages


def say(messages: list[tuple[int, str]], said: set[str]) -> None:
    """Log what a process has logged, once, since all of them say the same; `said` is added to."""
    for level, text in messages:
        if text not in said:
            said.add(text)
            logger.log(level, "%s", text)


@contextmanager
def _collected() -> Iterator[list[tuple[int, str]]]:
    """Collect level and text of the warnings that this library logs in the block."""
    found: list[tuple[int, str]] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append((record.levelno, record.getMessage()))
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _ray() -> Any:
    """The package ray.

    Raises:
        UsageError: if it is not installed.
    """
    # a `print` that Ray has replaced would look like one that somebody has altered
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UsageError("the engine ray needs the package; pip install 'cryptomnesia[ray]'") from None
    return ray
