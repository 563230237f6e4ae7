"""The checkpoints of a training, in the folder into which a trainer writes them.

| Trainer | Checkpoints | The end of the training |
| --- | --- | --- |
| diffusers' scripts | `checkpoint-500/` with `unet`, `unet_ema`, `transformer` or a LoRA | weights in the folder |
| kohya-ss | `NAME-step00000500`, `NAME-000010` (epochs), files or folders | `NAME` |
| SimpleTuner | `checkpoint-500/`, averaged weights in `ema` or `unet_ema` | LoRA in the folder, or `pipeline/` |
| proving ground | `step-500/`, `early/` | `final/` |
| others | files and folders whose name ends with a number | `final`, `last` |

**The step** is the number in the name. A file or folder of kohya's that is named by its epoch has the step that its
metadata (`ss_steps`) or the state beside it (`NAME-000010-state/train_state.json`) say; where neither is there, epochs
take the place of steps. The end of a training has the step of its metadata, its state or its `recipe.json`, too. Where
nothing tells the step, the end counts as one step after the last checkpoint: that is its place, and no more is known.
If it holds the same bytes as that checkpoint, it is left out. Step 0 is left out, as the base model stands for it.

**One checkpoint per step.** Where a trainer keeps averaged weights (EMA) beside the others, the averaged ones are
taken, because they are what these trainers hand out at the end. Of several checkpoints with one step, a name with the
step goes before a name with the epoch, and both before the end of the training. Several trainings in one folder are
refused.

**Unfinished** is a checkpoint of which something is missing or shorter than its header says; see `weight_files`. It is
never returned, and `unfinished_in` says why.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.finetuning.bases import check_same_base as check_same_base
from cryptomnesia.finetuning.bases import warn_of_another_base
from cryptomnesia.finetuning.layouts import (
    COMMON,
    ENDS,
    Candidate,
    Kind,
    changed_at,
    named,
    network_of,
    of_file,
    of_folder,
)
from cryptomnesia.finetuning.weight_files import UNFINISHED, UnfinishedError, network_files, pipeline_files
from cryptomnesia.pipelines.loading import load_pipeline, model_folder
from cryptomnesia.pipelines.origins.adapters import as_loras
from cryptomnesia.pipelines.origins.failures import explained
from cryptomnesia.pipelines.origins.parts import is_single_file

logger = logging.getLogger("cryptomnesia")

SETTLED = 5.0
"""Seconds for which a checkpoint has to be unchanged before it is taken while a training is watched."""

LOOKED_FOR = (
    "checkpoint-500 with unet, transformer or pytorch_lora_weights.safetensors, NAME-000010.safetensors, "
    "NAME-step00000500.safetensors, step-500 with model_index.json"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a training that is written to the end.

    Attributes:
        name: of its file or folder, relative to the folder of the training; `.` for weights in this folder itself.
        step: of the training; see the module for the end of a training, and for trainings that count epochs.
        path: the file of a LoRA or of a whole model, or the folder of a network or of a pipeline.
        kind: `pipeline` for a whole model, `network` for a UNet or transformer, `lora` for an adapter.
        final: whether it is the end of the training.
    """

    name: str
    step: int
    path: Path
    kind: Kind
    final: bool = False

    @property
    def scalable(self) -> bool:
        """Whether it can be loaded at another scale, which a LoRA can."""
        return self.kind == "lora"

    @property
    def files(self) -> list[Path]:
        """The files that make it what it is: its weights, and what scales those of a LoRA.

        Raises:
            UsageError: if they are not there any more.
        """
        try:
            if self.path.is_file():
                # PEFT's weights have their scale in another file
                beside = self.path.with_name("adapter_config.json")
                return [self.path, *([beside] if self.kind == "lora" and beside.is_file() else [])]
            if self.kind == "pipeline":
                return pipeline_files(self.path)
            return [file for part in (self.path, *self._encoders) for file in network_files(part)]
        except (OSError, UnfinishedError) as error:
            raise UsageError(f"the checkpoint {self.path} has changed or is gone ({error}); run again") from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names and contents of its files.

        Raises:
            UsageError: if they cannot be read.
        """
        found = []
        for path in self.files:
            # a checkpoint that is one file has the step in its name
            name = path.relative_to(self.path).as_posix() if path.is_relative_to(self.path) else path.name
            inside = "" if path == self.path else name
            try:
                with path.open("rb") as file:
                    found.append((inside, file_digest(file, "sha256").hexdigest()))
            except OSError as error:
                raise UsageError(f"cannot read the checkpoint {path} ({error.strerror or error}); run again") from None
        return sha256(json.dumps(sorted(found)).encode()).hexdigest()

    def load(self, base_model: str | Path, *, scale: float = 1.0, **loading: Any) -> Any:
        """Load the pipeline of this checkpoint.

        Args:
            base_model: what was trained further: all that the checkpoint lacks comes from there.
            scale: of the weights of a LoRA; 1 is as it was trained.
            **loading: further arguments of `load_pipeline`, as the base is loaded.

        Raises:
            UsageError: if it does not fit the base, cannot be loaded, or has no scale.
        """
        if scale != 1 and not self.scalable:
            raise UsageError(f"{self.name} is no LoRA and has no scale; leave scale={scale:g} out")
        base = str(base_model)
        if self.kind == "lora":
            # a base that is loaded with LoRAs keeps them
            loras = [*as_loras(loading.pop("lora", ())), (self.path, scale)]
            pipe = load_pipeline(base, lora=loras, **loading)
            warn_of_another_base(self.path, pipe)
            return pipe
        if self.kind == "network":
            loading = {name: value for name, value in loading.items() if name not in ("unet", "transformer")}
            pipe = load_pipeline(base, **{network_of(self.path): self.path}, **loading)
            return self._with_encoders(pipe)
        # these say how the files of the base are named and chosen
        loading = {name: value for name, value in loading.items() if name not in ("revision", "variant", "base")}
        if self.path.is_file() and not is_single_file(base):
            loading["base"] = str(model_folder(base) or base)
        return load_pipeline(self.path, **loading)

    @property
    def _encoders(self) -> list[Path]:
        """Folders of text encoders that were trained with the network."""
        if not self.path.is_dir() or self.path.name.removesuffix("_ema") not in ("unet", "transformer"):
            return []
        beside = [self.path.with_name(name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
        return [folder for folder in beside if (folder / "config.json").is_file()]

    def _with_encoders(self, pipe: Any) -> Any:
        for folder in self._encoders:
            current = getattr(pipe, folder.name, None)
            if current is None:
                raise UsageError(f"{folder} belongs to nothing in this {type(pipe).__name__}; give another base")
            try:
                encoder = type(current).from_pretrained(folder, dtype=current.dtype)
            # every library that is used here has errors of its own
            except Exception as error:
                raise explained(f"{folder.name} {folder}", error, folder=folder) from error
            pipe.register_modules(**{folder.name: encoder.to(current.device).eval()})
        return pipe


def checkpoints_in(folder: str | Path) -> list[Checkpoint]:
    """The checkpoints of a training that are written to the end, by step.

    Args:
        folder: into which the trainer writes; see the module for what is known.

    Raises:
        UsageError: if there is none, checkpoints of several trainings, or several whose steps cannot be told.
    """
    survey = _survey(Path(folder))
    for note in survey.notes:
        logger.warning(note)
    if not survey.found:
        waiting = "".join(f"; {name} is not finished: {why}" for name, why in survey.unfinished[:1])
        raise UsageError(f"no checkpoints in {folder}{waiting}; give a folder with, for instance, {LOOKED_FOR}")
    return survey.found


def unfinished_in(folder: str | Path) -> list[tuple[str, str]]:
    """Names of checkpoints that are not written to the end, each with the reason as a clause.

    Raises:
        UsageError: if there is no such folder.
    """
    return _survey(Path(folder)).unfinished


def watching(
    folder: str | Path, every: float, stop: Callable[[], bool] = lambda: False, *, settled: float = SETTLED
) -> Iterator[list[Checkpoint]]:
    """Follow a training: yield its checkpoints, by step, whenever there is a new one that is written to the end.

    The folder need not be there yet. Checkpoints that the trainer has removed are missing from later lists. It is over
    when the end of the training is there, written later than every checkpoint, and nothing is being written any more;
    or when `stop` says so, which is asked at least once a second. An end that is older than a checkpoint belongs to an
    earlier run in the same folder, and is no reason to stop. A training that is killed writes no end. Nothing is held
    open, so an interrupt is safe at any time.

    Args:
        folder: into which the trainer writes.
        every: seconds between looks at it.
        stop: whether to end.
        settled: seconds for which a checkpoint has to be unchanged.

    Raises:
        UsageError: for checkpoints of several trainings.
    """
    folder, noted, seen = Path(folder), set[str](), set[tuple[str, int]]()
    while not stop():
        if folder.is_dir():
            survey = _survey(folder, settled)
            for note in survey.notes:
                if note not in noted:
                    logger.warning(note)
            noted.update(survey.notes)
            names = {(checkpoint.name, checkpoint.step) for checkpoint in survey.found}
            if names - seen:
                seen |= names
                yield survey.found
            if survey.over and not survey.writing:
                return
        until = time.monotonic() + every
        while (left := until - time.monotonic()) > 0 and not stop():
            time.sleep(min(left, 1.0))


@dataclass
class _Survey:
    """What a look at a folder found.

    Attributes:
        found: checkpoints, by step.
        unfinished: names and reasons.
        writing: whether any of the unfinished ones has changed lately.
        notes: what is to be said once.
        over: whether the end of the training is there and newer than all checkpoints.
    """

    found: list[Checkpoint] = field(default_factory=list)
    unfinished: list[tuple[str, str]] = field(default_factory=list)
    writing: bool = False
    notes: list[str] = field(default_factory=list)
    over: bool = False


def _survey(folder: Path, settled: float = 0.0) -> _Survey:
    """Look at a folder.

    Args:
        folder: of the training.
        settled: seconds for which a checkpoint has to be unchanged.

    Raises:
        UsageError: if there is no such folder, or its checkpoints cannot be told.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; give the folder into which the trainer writes its checkpoints")
    survey, candidates = _Survey(), []
    for path in [folder, *sorted(folder.iterdir())]:
        name = path.relative_to(folder).as_posix()
        if path != folder and (name.startswith(".") or name.endswith("-state")):
            continue
        try:
            if path != folder and (name.endswith(UNFINISHED) or name.startswith("temporary-")):
                raise UnfinishedError("it is still being written")
            found = of_folder(path, root=path == folder) if path.is_dir() else of_file(path)
            if found is None:
                continue
            place, kind, header = found
            changed = changed_at(place if path == folder else path)
            if (ago := time.time() - changed) < settled:
                raise UnfinishedError(f"it changed {max(0.0, ago):.0f} s ago")
        except UnfinishedError as error:
            survey.unfinished.append((name, str(error)))
            survey.writing |= _recent(path, settled)
        # a trainer removes old checkpoints while this looks at them
        except FileNotFoundError:
            continue
        except OSError as error:
            survey.unfinished.append((name, f"it cannot be read ({error.strerror or error})"))
        else:
            candidates.append(named(folder, name, place, kind, header, changed))
    if candidates:
        _settle(folder, candidates, survey)
    return survey


def _recent(path: Path, settled: float) -> bool:
    """Whether something of a file or folder has changed in the last `settled` seconds."""
    try:
        return time.time() - changed_at(path) < settled
    except OSError:
        return True


def _settle(folder: Path, candidates: list[Candidate], survey: _Survey) -> None:
    """Give every candidate its step, one to each, and say what is left out.

    Raises:
        UsageError: for several trainings, or steps that cannot be told.
    """
    # `dog-2.safetensors` beside `dog-2-000010.safetensors` is the end of a training, and 2 is no step
    stems = {one.stem for one in candidates if one.number is not None}
    candidates = [replace(one, stem=one.bare, number=None) if one.bare in stems else one for one in candidates]
    numbered = [one for one in candidates if one.number is not None]
    trainings = sorted({one.stem for one in numbered if one.stem.lower() not in COMMON})
    if len(trainings) > 1:
        raise UsageError(
            f"{folder} holds checkpoints of several trainings: {', '.join(trainings[:4])}; give one folder each"
        )
    others = [one for one in candidates if one.number is None]
    ends = [one for one in others if one.stem in {*trainings, "."} or one.stem.lower() in ENDS]
    rest = [one for one in others if one not in ends]
    if not numbered and not ends and len(rest) == 1 and rest[0].stem != "early":
        ends, rest = rest, []
    known = [one for one in rest if one.known is not None and (not numbered or one.stem == "early")]
    if not numbered and not ends and not known and len(rest) > 1:
        raise UsageError(
            f"cannot tell the steps of {', '.join(one.name for one in rest[:4])} in {folder}; give names that end with "
            "the step, for instance lora-500.safetensors"
        )
    if left := [one.name for one in rest if one not in known]:
        survey.notes.append(f"left out {', '.join(left[:4])} in {folder}: nothing tells the step")
    epochs = [one for one in numbered if one.epoch and one.known is None]
    if epochs and len(epochs) < len(numbered):
        survey.notes.append(
            f"left out {', '.join(one.name for one in epochs[:4])} in {folder}: nothing tells the step of these epochs"
        )
        numbered = [one for one in numbered if one not in epochs]
    at: dict[int, Checkpoint] = {}
    for one in sorted([*numbered, *known], key=lambda one: one.rank):
        step = one.step if one.step is not None else one.number
        assert step is not None
        if step > 0:
            at.setdefault(step, Checkpoint(one.name, step, one.path, one.kind))
    # one whose step is known goes before the others, then the one in the folder itself
    for one in sorted(ends, key=lambda one: (one.known is None, one.stem))[:1]:
        last = max(at, default=0)
        step = last + 1 if one.known is None else one.known
        final = Checkpoint(one.name, step, one.path, one.kind, final=step > last)
        if step not in at and not (one.known is None and at and _same(at[last], final)):
            at[step] = final
    survey.found = [at[step] for step in sorted(at)]
    written = max((one.changed for one in numbered), default=0.0)
    survey.over = any(one.changed >= written for one in ends)


def _same(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two checkpoints hold the same bytes."""
    try:
        sizes = [sorted(file.stat().st_size for file in one.files) for one in (first, second)]
        return sizes[0] == sizes[1] and first.digest == second.digest
    # a trainer removes old checkpoints while this looks at them
    except (OSError, UsageError):
        return False
