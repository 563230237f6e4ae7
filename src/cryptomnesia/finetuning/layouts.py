"""How trainers lay out checkpoints: what is one, where its weights are, and what says at which step it was written.

`cryptomnesia.finetuning.checkpoints` says what is known of which trainer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptomnesia.errors import UsageError
from cryptomnesia.finetuning.weight_files import (
    PICKLED,
    Header,
    UnfinishedError,
    header_of,
    json_of,
    network_files,
    pipeline_files,
)
from cryptomnesia.pipelines.origins.adapters import WEIGHTS

Kind = Literal["pipeline", "network", "lora"]

_NUMBERED = re.compile(r"(?:(?P<stem>.*?)[-_. ])?(?P<unit>steps?|epochs?)?[-_=]?(?P<number>\d+)", re.IGNORECASE)
_EPOCH = re.compile(r".*-0\d{5}|(?:.*[-_. ])?epochs?[-_=]?\d+", re.IGNORECASE)
"""Names by epoch: kohya-ss pads epochs to 6 digits and steps to 8."""

COMMON = frozenset({"", "at", "checkpoint", "ckpt", "epoch", "global_step", "iter", "step", "save"})
"""Beginnings of names that do not name a training."""

ENDS = frozenset({"final", "last", "pipeline"})
"""Names of the end of a training."""

_ADAPTERS = (WEIGHTS, "adapter_model.safetensors", "ema_model.safetensors")
"""Names of files that hold a LoRA in a folder."""

_STATE = re.compile(r"(?:pytorch_)?model(?:_\d+)?\.(?:bin|safetensors)")
"""Names of the weights that accelerate saves to resume a training; those of a LoRA are in there with its base's."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint whose step is not settled yet.

    Attributes:
        name: as `Checkpoint` has it, and so are `path` and `kind`.
        path: see there.
        kind: see there.
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


def of_folder(folder: Path, *, root: bool) -> tuple[Path, Kind, Header | None] | None:
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
    alone = [path for path in folder.glob("*.safetensors") if not _STATE.fullmatch(path.name)]
    if len(alone) == 1:
        return of_file(alone[0])
    if (match := _NUMBERED.fullmatch(folder.name)) and match["stem"] in COMMON - {""}:
        raise UnfinishedError("it holds no weights yet, at most what is needed to resume the training")
    return None


def of_file(file: Path) -> tuple[Path, Kind, Header | None] | None:
    """The same for a file; the names of its tensors tell a LoRA, a network and a whole model apart."""
    if file.suffix.lower() not in (".safetensors", ".ckpt"):
        return None
    header = header_of(file)
    # what resumes a training of the proving ground
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


def network_of(path: Path) -> str:
    """Whether a folder or file holds a `unet` or a `transformer`."""
    try:
        if path.is_file():
            return _network_in(header_of(path).names) or "unet"
        return "unet" if "UNet" in str(json_of(path / "config.json").get("_class_name")) else "transformer"
    except UnfinishedError as error:
        raise UsageError(f"the checkpoint {path} has changed or is gone ({error}); run again") from None


def changed_at(place: Path) -> float:
    """When something of a file or folder changed last: a copy keeps the time of writing, but not that of the inode."""
    stats = [path.stat() for path in (place, *(place.rglob("*") if place.is_dir() else ()))]
    return max(max(stat.st_mtime, stat.st_ctime) for stat in stats)


def named(folder: Path, name: str, place: Path, kind: Kind, header: Header | None, changed: float) -> Candidate:
    """What the name of a checkpoint, its metadata and the files beside it say of its step."""
    bare = name.removesuffix(".safetensors").removesuffix(".ckpt")
    match = _NUMBERED.fullmatch(bare)
    # averaged weights are named, as they are a choice
    chosen = name == "." or place.parent.name == "ema" or place.name.endswith("_ema")
    shown = place.relative_to(folder).as_posix() if chosen else name
    return Candidate(
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
    if bare == "." and (match := _NUMBERED.fullmatch(folder.resolve().name)) and match["stem"] in COMMON - {""}:
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
