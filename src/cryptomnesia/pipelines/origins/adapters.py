"""LoRA adapters: `PATH[:SCALE]`, files, folders and hub ids, attached to a pipeline and seen to fit it."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.origins.failures import explained
from cryptomnesia.pipelines.origins.notices import heard

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file that diffusers' training scripts write."""

_PEFT_FILE = "adapter_model.safetensors"
"""The file that PEFT writes, beside `adapter_config.json`; its keys do not name the network."""

_ENDINGS = (".safetensors", ".bin", ".pt", ".ckpt")


@dataclass(frozen=True)
class Lora:
    """A LoRA and its scale.

    Attributes:
        source: a file, a folder, or a hub id, which may name a file: `org/name/file.safetensors`.
        scale: factor of its weights; 1 is as it was trained.
    """

    source: str
    scale: float = 1.0

    @classmethod
    def of(cls, given: Any) -> "Lora":
        """A LoRA that was given as `PATH[:SCALE]`, as a path, or as a pair of a path and a scale.

        A number behind the last colon is the scale, unless there is a file or folder of the whole name. So colons in
        paths and Windows' drive letters need no quoting.

        Raises:
            UsageError: for anything else, or a scale that is not finite.
        """
        if isinstance(given, Lora):
            return given
        if isinstance(given, tuple | list) and len(given) == 2:
            source, scale = given
            if not isinstance(source, str | Path) or isinstance(scale, bool) or not isinstance(scale, int | float):
                raise UsageError(f"got the LoRA {given!r}; give a path and a number")
            return cls._checked(str(source), float(scale), repr(given))
        if not isinstance(given, str | Path):
            raise UsageError(f"got the LoRA {given!r}; give a path, PATH:SCALE, or a path and a scale")
        text = str(given)
        before, colon, after = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls._checked(text, 1.0, text)
        try:
            return cls._checked(before, float(after), text)
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
        if Path(before).exists() or before.endswith(_ENDINGS):
            raise UsageError(f"got the LoRA {text} with the scale {after!r}; give a number, for instance {before}:0.8")
        return cls._checked(text, 1.0, text)

    @classmethod
    def _checked(cls, source: str, scale: float, text: str) -> "Lora":
        if not source.strip():
            raise UsageError(f"got the LoRA {text!r} without a path; give PATH or PATH:SCALE")
        if not math.isfinite(scale):
            raise UsageError(f"got the LoRA {text} with the scale {scale}; give a finite number")
        return cls(source, scale)

    def located(self) -> tuple[str, str | None]:
        """The folder, or the hub id, and the name of the file in it; None stands for diffusers' own choice.

        Raises:
            UsageError: for a file or folder that is not there, or a folder in which the file cannot be told.
        """
        path = Path(self.source)
        if path.is_file():
            return str(path.parent), path.name
        if path.is_dir():
            return str(path), _only_file(path)
        parts = self.source.split("/")
        is_path = self.source.startswith((".", "/", "~")) or "\\" in self.source or len(parts) < 2
        if is_path or (len(parts) == 2 and self.source.endswith(_ENDINGS)):
            raise UsageError(f"no LoRA {self.source}; give a file, a folder, or a hub id such as org/name")
        return "/".join(parts[:2]), "/".join(parts[2:]) or None


def as_loras(given: Any) -> list[Lora]:
    """The LoRAs of an argument: one or several, in any of the ways of `Lora.of`.

    Raises:
        UsageError: for anything else.
    """
    if given is None:
        return []
    pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], int | float)
    if pair or isinstance(given, str | Path | Lora):
        return [Lora.of(given)]
    if not isinstance(given, Iterable):
        raise UsageError(f"got lora={given!r}; give a path, PATH:SCALE, or a list of these")
    return [Lora.of(one) for one in given]


def check_loras(loras: Sequence[Lora]) -> None:
    """Refuse LoRAs that are not there, or that nothing here can load, before a model is loaded.

    Raises:
        UsageError: saying what is missing.
    """
    for lora in loras:
        lora.located()
    if loras and find_spec("peft") is None:
        raise UsageError("a LoRA needs the package peft, which is not installed; pip install peft")


def attach_loras(pipe: Any, loras: Sequence[Lora], **hub: Any) -> None:
    """Load LoRAs into a pipeline and switch them on, each at its scale.

    Args:
        pipe: the pipeline.
        loras: in their order; they are called `lora_0`, `lora_1`, ….
        **hub: arguments that say how the hub is asked, such as `token` and `local_files_only`.

    Raises:
        UsageError: for a pipeline that takes no LoRA, or a LoRA that cannot be loaded or does not fit the pipeline as a
            whole.
    """
    if loras and not hasattr(pipe, "load_lora_weights"):
        raise UsageError(f"a {type(pipe).__name__} takes no LoRA; leave it out")
    for number, lora in enumerate(loras):
        _attach(pipe, lora, f"lora_{number}", hub)
    if loras:
        pipe.set_adapters([f"lora_{number}" for number in range(len(loras))], [lora.scale for lora in loras])


def _attach(pipe: Any, lora: Lora, name: str, hub: dict[str, Any]) -> None:
    """Load one LoRA, and see that all of it found its place."""
    folder, file = lora.located()
    try:
        with heard():
            if file == _PEFT_FILE and (config := Path(folder) / "adapter_config.json").is_file():
                given = _attach_peft(pipe, Path(folder) / file, config, name)
            else:
                options = hub | ({} if file is None else {"weight_name": file})
                found = pipe.lora_state_dict(folder, return_lora_metadata=False, **options)
                tensors = found[0] if isinstance(found, tuple) else found
                given = sum("lora" in key.lower() and "alpha" not in key for key in tensors)
                pipe.load_lora_weights(folder, adapter_name=name, **options)
    # every library that is used here has errors of its own
    except Exception as error:
        if "size mismatch" in str(error) or isinstance(error, LookupError):
            raise UsageError(
                f"LoRA {lora.source} does not fit this {type(pipe).__name__}; give one that was trained on this model"
            ) from error
        raise explained(f"LoRA {lora.source}", error) from error
    used = sum(
        f".{name}." in key
        for part in pipe.components.values()
        if hasattr(part, "named_parameters")
        for key, _ in part.named_parameters()
    )
    if used < given or used == 0:
        raise UsageError(
            f"LoRA {lora.source} does not fit this {type(pipe).__name__}: {given - used} of its {given} tensors belong "
            "to nothing in it; give one that was trained on this model"
        )


def _attach_peft(pipe: Any, file: Path, config: Path, name: str) -> int:
    """Load an adapter that PEFT saved of the denoiser; returns the number of its tensors."""
    from safetensors.torch import load_file

    network = "transformer" if getattr(pipe, "transformer", None) is not None else "unet"
    tensors = {f"{network}.{key.removeprefix('base_model.model.')}": value for key, value in load_file(file).items()}
    settings = json.loads(config.read_text(encoding="utf-8"))
    kept = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
    metadata = {f"{network}.{key}": settings[key] for key in kept if key in settings}
    getattr(pipe, network).load_lora_adapter(tensors, prefix=network, adapter_name=name, metadata=metadata)
    return len(tensors)


def _only_file(folder: Path) -> str:
    """The name of the LoRA's file in a folder."""
    for usual in (WEIGHTS, _PEFT_FILE):
        if (folder / usual).is_file():
            return usual
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(files) != 1:
        got = ", ".join(files[:5]) if files else "no .safetensors file"
        raise UsageError(f"the LoRA folder {folder} holds {got}; give the file itself")
    return files[0]
