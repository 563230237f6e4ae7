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
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import cosine_similarity

from cryptomnesia.errors import UsageError
from cryptomnesia.finetuning.weight_files import (
    PICKLED,
    UNFINISHED,
    Header,
    UnfinishedError,
    header_of,
    json_of,
    network_files,
    pipeline_files,
)
from cryptomnesia.localizers.baseline import check_checkpoint
from cryptomnesia.pipelines.contents.adapters import without_adapters
from cryptomnesia.pipelines.contents.walk import Walk
from cryptomnesia.pipelines.contents.weights import weights_of
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.loading import load_pipeline, model_folder
from cryptomnesia.pipelines.origins.adapters import WEIGHTS, as_loras
from cryptomnesia.pipelines.origins.failures import explained
from cryptomnesia.pipelines.origins.parts import is_single_file

logger = logging.getLogger("cryptomnesia")

Kind = Literal["pipeline", "network", "lora"]

LIKE = 0.5
"""Mean cosine similarity of weights to those of the base below which a checkpoint counts as one of another base.

Measured on the bundled models: .96 between a base and a LoRA fused into it after 600 steps at a high rate; .76 (scenes)
and .62 (drawings) between the end of a training from scratch and a checkpoint from its beginning, from where weights
move farther than in any fine-tune; between -.002 and .02 for random weights, or for the tensors that scenes and
drawings have in common by name and shape.
"""

SETTLED = 5.0
"""Seconds for which a checkpoint has to be unchanged before it is taken while a training is watched."""

LOOKED_FOR = (
    "checkpoint-500 with unet, transformer or pytorch_lora_weights.safetensors, NAME-000010.safetensors, "
    "NAME-step00000500.safetensors, step-500 with model_index.json"
)

_NUMBERED = re.compile(r"(?:(?P<stem>.*?)[-_. ])?(?P<unit>steps?|epochs?)?[-_=]?(?P<number>\d+)", re.IGNORECASE)
_EPOCH = re.compile(r".*-0\d{5}|(?:.*[-_. ])?epochs?[-_=]?\d+", re.IGNORECASE)
"""Names by epoch: kohya-ss pads epochs to 6 digits and steps to 8."""

_COMMON = frozenset({"", "at", "checkpoint", "ckpt", "epoch", "global_step", "iter", "step", "save"})
"""Beginnings of names that do not name a training."""

_ENDS = frozenset({"final", "last", "pipeline"})
"""Names of the end of a training."""

_ADAPTERS = (WEIGHTS, "adapter_model.safetensors", "ema_model.safetensors")
"""Names of files that hold a LoRA in a folder."""

_STATE = ("optimizer", "scheduler", "random_states", "model", "pytorch_model", "scaler", "sampler")
"""Beginnings of the names of what accelerate saves to resume a training."""


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
            _warn_of_another_base(self, pipe)
            return pipe
        if self.kind == "network":
            loading = {name: value for name, value in loading.items() if name not in ("unet", "transformer")}
            pipe = load_pipeline(base, **{_network_of(self.path): self.path}, **loading)
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
    when the end of the training is there, written later than every checkpoint, and nothing is unfinished; or when
    `stop` says so, which is asked at least once a second. An end that is older than a checkpoint belongs to an earlier
    run in the same folder, and is no reason to stop. Nothing is held open, so an interrupt is safe at any time.

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
            if survey.over and not survey.unfinished:
                return
        until = time.monotonic() + every
        while (left := until - time.monotonic()) > 0 and not stop():
            time.sleep(min(left, 1.0))


def check_same_base(base_pipe: Any, pipe: Any) -> None:
    """Refuse a checkpoint of another base model.

    It has to have the latents and the noise schedule of the base, the same weights by name and shape, and values near
    them: the mean cosine similarity over the weights of the denoiser with two and more dimensions is at least `LIKE`.
    An adapter is not looked at, as it has been refused already if it does not fit.

    Args:
        base_pipe: the base model.
        pipe: the checkpoint, loaded like the base.

    Raises:
        UsageError: saying what differs.
    """
    check_checkpoint(pipe, base_pipe, decoded=False)
    base, found = _weights(base_pipe), _weights(pipe)
    odd = sorted(base.keys() ^ found.keys())
    odd += [name for name in base.keys() & found.keys() if base[name].shape != found[name].shape]
    if odd:
        raise UsageError(
            f"the checkpoint has another layout than the base: {len(odd)} of its weights differ in name or shape, "
            f"{odd[0]} for one; give the model that was trained further as the base"
        )
    alike = likeness(base, found)
    if alike < LIKE:
        raise UsageError(
            f"the checkpoint was trained on another base: its weights have a mean cosine similarity of {alike:.2f} to "
            f"this one's, and at least {LIKE} is expected; give the model that was trained further as the base"
        )


def likeness(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Mean cosine similarity, in [-1, 1], of tensors with the same names and two or more dimensions."""
    found = [
        cosine_similarity(value.flatten().float(), others[name].flatten().float().to(value.device), dim=0).item()
        for name, value in weights.items()
        if value.dim() > 1
    ]
    return sum(found) / max(1, len(found))


def _weights(pipe: Any) -> dict[str, Tensor]:
    """The weights of the denoiser by name, without adapters."""
    family: Any = family_of(pipe)
    walk = Walk.through(family.module)
    found = without_adapters(walk, weights_of("denoiser", walk))
    return {name: value for name, value in found.items() if value.is_floating_point()}


@dataclass(frozen=True)
class _Found:
    """A checkpoint whose step is not settled yet.

    Attributes:
        bare: the name without the ending of a file.
        stem: this name without the number.
        number: in its name, None if there is none.
        epoch: whether the number counts epochs.
        known: the step according to its metadata, or files beside it.
        changed: when something of it changed last, in seconds since the epoch.
    """

    name: str
    path: Path
    kind: Kind
    bare: str
    stem: str
    number: int | None
    epoch: bool
    known: int | None
    changed: float

    @property
    def step(self) -> int | None:
        """The step, if it is known."""
        return self.known if self.epoch or self.number is None else self.number

    @property
    def rank(self) -> int:
        """Of several with one step the first is taken."""
        return 2 if self.number is None else int(self.epoch)

    def at(self, step: int, *, final: bool = False) -> Checkpoint:
        """The checkpoint at a step."""
        return Checkpoint(self.name, step, self.path, self.kind, final)


@dataclass
class _Survey:
    """What a look at a folder found.

    Attributes:
        found: checkpoints, by step.
        unfinished: names and reasons.
        notes: what is to be said once.
        over: whether the end of the training is there and newer than all checkpoints.
    """

    found: list[Checkpoint] = field(default_factory=list)
    unfinished: list[tuple[str, str]] = field(default_factory=list)
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
            found = _of_folder(path, root=path == folder) if path.is_dir() else _of_file(path)
            if found is None:
                continue
            place, kind, header = found
            changed = _changed(place if path == folder else path)
            if (ago := time.time() - changed) < settled:
                raise UnfinishedError(f"it changed {max(0.0, ago):.0f} s ago")
        except UnfinishedError as error:
            survey.unfinished.append((name, str(error)))
        # a trainer removes old checkpoints while this looks at them
        except FileNotFoundError:
            continue
        else:
            candidates.append(_named(folder, name, place, kind, header, changed))
    if candidates:
        _settle(folder, candidates, survey)
    return survey


def _of_folder(folder: Path, *, root: bool) -> tuple[Path, Kind, Header | None] | None:
    """Where the weights in a folder are, of which kind, and the header of a single file; None if it is no checkpoint.

    Raises:
        UnfinishedError: if they are not written to the end.
    """
    for place in (folder / "ema", folder, folder / "lora"):
        for file in (place / name for name in _ADAPTERS):
            if file.is_file():
                header = header_of(file)
                if file.name == "adapter_model.safetensors":
                    json_of(file.with_name("adapter_config.json"))
                return file, "lora", header
    if (folder / "model_index.json").is_file():
        pipeline_files(folder)
        return folder, "pipeline", None
    for name in ("unet", "transformer"):
        if not (folder / name).is_dir() and not (folder / f"{name}_ema").is_dir():
            continue
        if (folder / "vae").is_dir():
            raise UnfinishedError("model_index.json is missing")
        averaged = folder / f"{name}_ema"
        place = averaged if (averaged / "config.json").is_file() else folder / name
        network_files(place)
        for encoder in folder.glob("text_encoder*/config.json"):
            network_files(encoder.parent)
        return place, "network", None
    if list(folder.glob("diffusion_pytorch_model*")):
        network_files(folder)
        return folder, "network", None
    if root:
        return None
    alone = [path for path in folder.glob("*.safetensors") if not path.name.startswith(_STATE)]
    if len(alone) == 1:
        return _of_file(alone[0])
    if _NUMBERED.fullmatch(folder.name) and all(path.name.startswith(_STATE) for path in folder.iterdir()):
        raise UnfinishedError("it holds no weights of a model yet, at most what resumes the training")
    return None


def _of_file(file: Path) -> tuple[Path, Kind, Header | None] | None:
    """The same for a file; the names of its tensors tell a LoRA, a network and a whole model apart."""
    if file.suffix.lower() not in (".safetensors", ".ckpt") or file.name.startswith(_STATE):
        return None
    header = header_of(file)
    if any(name.startswith("optimizer") for name in header.names):
        return None
    if file.suffix.lower() in PICKLED:
        return file, "pipeline", header
    if any(part in name.lower() for name in header.names for part in ("lora", "hada_", "lokr_")):
        return file, "lora", header
    if any(name.startswith("first_stage_model.") for name in header.names):
        return file, "pipeline", header
    return (file, "network", header) if _network_in(header.names) else None


def _network_in(names: Iterable[str]) -> str | None:
    """Which network tensors belong to, by their names."""
    for name in names:
        beginning = name.removeprefix("model.diffusion_model.").partition(".")[0]
        if beginning in ("input_blocks", "down_blocks"):
            return "unet"
        if beginning in ("double_blocks", "joint_blocks", "transformer_blocks"):
            return "transformer"
    return None


def _network_of(path: Path) -> str:
    """Whether a folder or file holds a `unet` or a `transformer`."""
    try:
        if path.is_file():
            return _network_in(header_of(path).names) or "unet"
        return "unet" if "UNet" in str(json_of(path / "config.json").get("_class_name")) else "transformer"
    except UnfinishedError as error:
        raise UsageError(f"the checkpoint {path} has changed or is gone ({error}); run again") from None


def _changed(place: Path) -> float:
    """When something of a file or folder changed last: a copy keeps the time of writing, but not that of the inode."""
    stats = [path.stat() for path in (place, *(place.rglob("*") if place.is_dir() else ()))]
    return max(max(stat.st_mtime, stat.st_ctime) for stat in stats)


def _named(folder: Path, name: str, place: Path, kind: Kind, header: Header | None, changed: float) -> _Found:
    """What the name of a checkpoint, its metadata and the files beside it say of its step."""
    bare = name.removesuffix(".safetensors").removesuffix(".ckpt")
    match = _NUMBERED.fullmatch(bare)
    # averaged weights are named, as they are a choice
    chosen = name == "." or place.parent.name == "ema" or place.name.endswith("_ema")
    shown = place.relative_to(folder).as_posix() if chosen else name
    return _Found(
        shown,
        place,
        kind,
        bare,
        (match["stem"] or "") if match else bare,
        int(match["number"]) if match else None,
        _EPOCH.fullmatch(bare) is not None,
        _known_step(folder, bare, header),
        changed,
    )


def _known_step(folder: Path, bare: str, header: Header | None) -> int | None:
    """The step of a checkpoint according to its metadata, the state beside it, or the recipe of the run."""
    if header is not None and header.metadata.get("ss_steps", "").isdigit():
        return int(header.metadata["ss_steps"])
    if bare == "." and (match := _NUMBERED.fullmatch(folder.resolve().name)) and match["stem"] in _COMMON - {""}:
        return int(match["number"])
    try:
        if (state := folder / f"{bare}-state" / "train_state.json").is_file():
            return int(json_of(state)["current_step"])
        if bare in ("early", "final") and (recipe := folder / "recipe.json").is_file():
            found = json_of(recipe)
            return int(found["kept"][0] if bare == "early" else sum(phase["steps"] for phase in found["phases"]))
    except (UnfinishedError, KeyError, IndexError, TypeError, ValueError):
        return None
    return None


def _settle(folder: Path, candidates: list[_Found], survey: _Survey) -> None:
    """Give every candidate its step, one to each, and say what is left out.

    Raises:
        UsageError: for several trainings, or steps that cannot be told.
    """
    # `dog-2.safetensors` beside `dog-2-000010.safetensors` is the end of a training, and 2 is no step
    stems = {one.stem for one in candidates if one.number is not None}
    candidates = [replace(one, stem=one.bare, number=None) if one.bare in stems else one for one in candidates]
    numbered = [one for one in candidates if one.number is not None]
    trainings = sorted({one.stem for one in numbered if one.stem.lower() not in _COMMON})
    if len(trainings) > 1:
        raise UsageError(
            f"{folder} holds checkpoints of several trainings: {', '.join(trainings[:4])}; give one folder each"
        )
    others = [one for one in candidates if one.number is None]
    ends = [one for one in others if one.stem in {*_ENDS, *trainings, "."}]
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
            at.setdefault(step, one.at(step))
    for one in sorted(ends, key=lambda one: one.stem):
        final = one.at(one.known if one.known is not None else max(at, default=0) + 1, final=True)
        if final.step not in at and not (one.known is None and at and _same(at[max(at)], final)):
            at[final.step] = final
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


_ARCHITECTURES = {"sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "sd_v": "StableDiffusion", "flux": "Flux"}
"""Beginning of `ss_base_model_version` in kohya's metadata → beginning of the name of a pipeline's class."""


def _warn_of_another_base(checkpoint: Checkpoint, pipe: Any) -> None:
    """Warn of a LoRA that says that it was trained on another kind of model than this one."""
    try:
        said = header_of(checkpoint.path).metadata.get("ss_base_model_version", "")
    except UnfinishedError:
        return
    expected = next((kind for start, kind in _ARCHITECTURES.items() if said.startswith(start)), None)
    if expected is None:
        return
    kind = type(pipe).__name__
    stem = max((name for name in _ARCHITECTURES.values() if kind.startswith(name)), key=len, default=kind)
    velocity = said.startswith("sd_v") and said.endswith("_v")
    if stem != expected or (velocity and family_of(pipe).kind == "epsilon"):
        logger.warning("%s says that it was trained on %s, and the base is a %s", checkpoint.name, said, kind)
