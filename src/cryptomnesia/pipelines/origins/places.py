"""Where a model is: the folder of a name, and what a folder holds that is none."""

import json
from pathlib import Path

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.origins.parts import is_single_file

BUNDLED = "bundled"
"""The name of the model that comes with the package; with a colon and a proving ground behind it, of that one's."""


def bundle_of(model: str) -> Path | None:
    """The bundle that `bundled` or `bundled:GROUND` stands for; None for every other name.

    Raises:
        UsageError: if the model of that ground does not come with the package.
    """
    from cryptomnesia.proving_ground import BUNDLE, BUNDLES

    name, colon, ground = model.partition(":")
    if name != BUNDLED:
        return None
    if not colon:
        return BUNDLE
    every = sorted(folder.parent.name for folder in BUNDLES.glob("*/manifest.json"))
    if ground not in every:
        raise UsageError(f"no bundled model of a ground {ground!r}; there are those of {', '.join(every)}")
    return BUNDLES / ground


def model_folder(model: str) -> Path | None:
    """The local folder of `model`, None for a hub id."""
    if (bundle := bundle_of(model)) is not None:
        return bundle / "pipeline"
    return Path(model) if Path(model).exists() else None


def check_exists(model: str) -> Path | None:
    """The local folder of `model`, None for a hub id; loads nothing.

    Raises:
        UsageError: for an empty name, a folder that is no diffusers folder, or a name that can be neither a folder nor
            a hub id.
    """
    if not model.strip():
        raise UsageError(
            f"got an empty name of a model; give a local diffusers folder, a hub id such as org/name, or {BUNDLED}"
        )
    folder = model_folder(model)
    if folder is None and is_single_file(model):
        raise UsageError(f"no file {model}; give the path of a model in a single file")
    if folder is not None and folder.is_file():
        return None if is_single_file(model) else _refuse_file(folder)
    if folder is None and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise UsageError(f"no model {model!r}; give a local diffusers folder, a hub id such as org/name, or {BUNDLED}")
    if folder is not None and not (folder / "model_index.json").is_file():
        raise UsageError(f"{folder} is no diffusers folder: it has no model_index.json; {_instead(folder)}")
    return folder


def _refuse_file(file: Path) -> None:
    raise UsageError(f"{file} is no file of weights; give a diffusers folder, or a .safetensors or .ckpt file")


def _instead(folder: Path) -> str:
    """What a folder that is no diffusers folder holds, and how it is given."""
    if list(folder.glob("*lora*.safetensors")) or (folder / "adapter_config.json").is_file():
        return "it holds a LoRA, so give it as --lora, and the model that it was trained on"
    if inside := sorted(path.parent.name for path in folder.glob("*/model_index.json")):
        return f"give the folder {folder / inside[0]}, which has one"
    if parts := [name for name in ("unet", "unet_ema", "transformer") if (folder / name / "config.json").is_file()]:
        return f"it holds a {parts[0]}, so give it as --{parts[0].removesuffix('_ema')}, and the model it belongs to"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("_class_name") or config["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "give the folder that has one"
    network = {"UNet": "unet", "Tran": "transformer"}.get(str(kind).removeprefix("SD3").removeprefix("Flux")[:4])
    if network and "_class_name" in config:
        return f"it holds a {kind}, so give it as --{network}, and the model it belongs to"
    return f"it holds a {kind}, which alone makes no pictures; give the folder that has one"
