"""Measures the checkpoints of a training from within the training.

A measurement makes hundreds of images, so it does not belong into the loop that trains. `CopyingMeter` starts the
command `cryptomnesia finetune` in another process, with the lowest priority, whenever the trainer has saved a
checkpoint; if one is still running, the next one begins after it and measures all that were saved meanwhile. A process
is there only while there is something to measure: between checkpoints none holds memory of the GPU. It is not the
command's `--watch`, which waits until files have not changed for a while and has to guess when a training is over: the
trainer knows both.

Every process goes on in the same folder, so a checkpoint is measured once, and the same command without a training
shows what is there. A measurement that fails costs a warning, and the training goes on. What was saved since is
measured with the next checkpoint.

`cryptomnesia.finetuning.trainers` has the callback for the Trainer of transformers.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from cryptomnesia.errors import UsageError
from cryptomnesia.finetuning.course import FILE, Course, Point
from cryptomnesia.settings import FinetuneSettings

logger = logging.getLogger("cryptomnesia")

LOWEST = 19
"""Niceness of the process that measures."""

_DONE = (0, 1, 3)
"""Exit codes of `finetune` with a result."""

_OF_THE_TRAINING = (
    "ACCELERATE_",
    "FSDP_",
    "GROUP_",
    "LOCAL_",
    "MASTER_",
    "RANK",
    "ROLE_",
    "TORCHELASTIC_",
    "WORLD_SIZE",
)
"""Beginnings of environment variables with which a process would take itself for one of a distributed training."""


Scalars = dict[str, float]
"""Values for a tracker of experiments: `copying/step`, of the checkpoint; `copying/copied`, the number of training
pictures that come back; `copying/pictures`, the number of those that were asked about; and `copying/share`, the
former by the latter, in [0, 1]."""


class CopyingMeter:
    """Says while a training goes on how many of its pictures come back.

    It is for one process: of a distributed training, the main one.

    Attributes:
        course: what is known by now, None as long as nothing is measured.
        log: called with `Scalars` and the step that the training has reached, once for every checkpoint.

    Example:
        meter = CopyingMeter("output", base, "my-pictures", output="course", log=accelerator.log)
        for step in range(1, steps + 1):
            ...
            if step % 500 == 0 and accelerator.is_main_process:
                save(f"output/checkpoint-{step}")
                meter.saved(step)
        course = meter.finish()
        print(course.start, course.before)
    """

    def __init__(
        self,
        checkpoints: str | Path,
        base: str | Path,
        data: str | Path | list[str | Path],
        captions: str | Path | None = None,
        *,
        output: str | Path,
        log: Callable[[Scalars, int], Any] | None = None,
        aside: bool = True,
        **settings: Any,
    ) -> None:
        """Read the settings, so that a wrong one is refused before the training begins.

        Args:
            checkpoints: folder into which the trainer writes them; it need not be there yet.
            base: name of the model that the training began from.
            data: folder of the pictures of the training.
            captions: file with their captions; by default those that lie beside the pictures.
            output: folder of the run of `finetune`, which is made if it is missing.
            log: called with `Scalars` and the step that the training has reached, as trackers want steps that never go
                back; `accelerator.log` for instance.
            aside: whether another process measures. If not, `saved` does it in this one, and the training waits.
            **settings: options of the command `finetune` by name, for instance `held_out="others"`, `steps=20`,
                `images=4` or `device="cuda:1"`. On the device of the training they take a part of its time, and of its
                memory twice that of the model.

        Raises:
            UsageError: for a setting that is unknown or not possible, or a folder of pictures that is missing.
        """
        given = {"checkpoints": checkpoints, "base": str(base), "data": data, "captions": captions, **settings}
        # a setting of several paths takes a list, or one path as text
        given |= {name: str(given[name]) for name in ("data", "held_out") if isinstance(given.get(name), Path)}
        self._settings = FinetuneSettings.resolve(given, environment={})
        if missing := [path for path in (*self._settings.data, *self._settings.held_out) if not path.exists()]:
            raise UsageError(f"no pictures in {missing[0]} (no such file or folder); give the pictures of the training")
        self._output, self.log, self._aside = Path(output), log, aside
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None
        self._before: int | None = None
        self._waiting = False
        self._step = 0
        self._known: set[int] = set()
        self.course: Course | None = None

    @property
    def copying(self) -> bool:
        """Whether a checkpoint returns a training picture, as far as is known by now."""
        return self.course is not None and self.course.start is not None

    @property
    def command(self) -> list[str]:
        """The command that measures."""
        values = self._settings.model_dump(mode="json", exclude_unset=True, exclude={"checkpoints"})
        flags = [flag for name, value in values.items() for flag in _flags(name, value)]
        program = [sys.executable, "-m", "cryptomnesia", "finetune", str(self._settings.checkpoints)]
        return [*program, *flags, f"--output={self._output}"]

    def saved(self, step: int) -> None:
        """Have a checkpoint measured that the trainer has written to the end.

        Args:
            step: that the training has reached.
        """
        self._waiting = True
        self.look(step)

    def look(self, step: int) -> None:
        """Look whether a measurement has ended, which takes next to no time and can be done at every step.

        Args:
            step: that the training has reached.
        """
        self._step = step
        if self._process is not None and (code := self._process.poll()) is not None:
            self._ended(code)
        if self._process is None and self._waiting:
            self._waiting = False
            self._begin()

    def finish(self) -> Course | None:
        """Wait until everything that was saved is measured.

        Returns:
            What the training does over its checkpoints, None if nothing could be measured.
        """
        self.look(self._step)
        while self._process is not None:
            self._process.wait()
            self.look(self._step)
        return self.course

    def _begin(self) -> None:
        """Measure here, or start the process that does."""
        # whatever goes wrong here, the training is worth more
        try:
            if self._aside:
                self._messages, self._before = TemporaryFile(), self._written
                self._process = _started(self.command, self._messages)
                return
            course = self._measured()
        except Exception as error:
            self._failed(str(error) or type(error).__name__)
        else:
            self._new(course)

    def _measured(self) -> Course:
        """Measure in this process, and leave its random numbers as they are."""
        import torch

        from cryptomnesia.finetuning.verb import finetune

        values = self._settings.model_dump()
        names = ("checkpoints", "base", "data", "captions", "held_out", "held_out_captions", "other_captions")
        checkpoints, base, data, captions, held_out, held_out_captions, other = (values.pop(name) for name in names)
        with torch.random.fork_rng():
            return finetune(
                checkpoints,
                base,
                data,
                captions,
                held_out=held_out or None,
                held_out_captions=held_out_captions,
                other_captions=other or (),
                output=self._output,
                **values,
            )

    def _ended(self, code: int) -> None:
        """Read what the process found that has ended with an exit code."""
        assert self._messages is not None
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        self._messages.close()
        self._process = self._messages = None
        try:
            # Python itself ends with code 1 as well if a program cannot be started
            if code not in _DONE or self._written == self._before:
                raise UsageError(lines[-1] if lines else f"exit code {code}")
            course = Course.load(self._output)
        except UsageError as error:
            self._failed(str(error))
        else:
            self._new(course)

    @property
    def _written(self) -> int | None:
        """When the result was written, in nanoseconds; None if there is none."""
        try:
            return (self._output / FILE).stat().st_mtime_ns
        except OSError:
            return None

    def _failed(self, why: str) -> None:
        logger.warning("a checkpoint was not measured, and the training goes on (%s)", why)

    def _new(self, course: Course) -> None:
        """Say and log what a course has that was not known."""
        if course.start is not None and course.before is not None and not self.copying:
            logger.warning("copying starts at step %d; keep %s", course.start.step, course.before.name)
        self.course = course
        for point in course.points[1:]:
            if point.step not in self._known and self.log is not None:
                self.log(_scalars(course, point), self._step)
            self._known.add(point.step)


def _scalars(course: Course, point: Point) -> Scalars:
    copied, pictures = len(point.copied), len(course.pictures)
    return {
        "copying/step": point.step,
        "copying/copied": copied,
        "copying/pictures": pictures,
        "copying/share": copied / max(1, pictures),
    }


def _flags(name: str, value: Any) -> list[str]:
    """A setting as flags of the command."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}={one}" for one in (value if isinstance(value, list) else [value]) if one is not None]


def _started(command: list[str], messages: IO[bytes]) -> "subprocess.Popen[bytes]":
    """A process with the lowest priority."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_TRAINING)}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=messages,
        creationflags=getattr(subprocess, "IDLE_PRIORITY_CLASS", 0),
    )
    # a function that runs between fork and exec would not be safe beside the threads of a training
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST)
    return process
