"""Parts of a pipeline that come from elsewhere: a network from a training checkpoint, and a model in a single file."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.origins.failures import explained
from cryptomnesia.pipelines.origins.notices import heard

FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""Endings of files that hold weights."""

_CLASSES = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "inpainting_v2": "StableDiffusionInpaintPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "playground-v2-5": "StableDiffusionXLPipeline",
    "xl_refiner": "StableDiffusionXLImg2ImgPipeline",
    "xl_inpaint": "StableDiffusionXLInpaintPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}
"""Kind of a single file, as diffusers tells it from the names of its tensors → class of the pipeline."""

_STEMS = ("StableDiffusionXL", "StableDiffusion3", "StableDiffusion", "Flux2", "Flux")
"""Beginnings of the names of classes that read one layout of files."""

_FITTING = ("in_channels", "out_channels", "cross_attention_dim", "joint_attention_dim", "caption_channels")
"""What a network's configuration has to have in common with that of the network in whose place it comes."""


def is_single_file(model: str) -> bool:
    """Whether a model is given as one file of weights."""
    return model.lower().endswith(FILES)


def network_folder(name: str, given: Path) -> Path:
    """The folder or file of a network.

    Args:
        name: `unet` or `transformer`.
        given: a folder with config.json and weights, a checkpoint of a training script with a folder `unet` or
            `unet_ema` (or `transformer`), or a single file of weights.

    Raises:
        UsageError: if there is none, or more than one.
    """
    if given.is_file():
        if given.suffix.lower() not in FILES:
            raise UsageError(f"got --{name} {given}, which is no file of weights; give a folder or a .safetensors file")
        return given
    if not given.is_dir():
        raise UsageError(f"no folder {given} for --{name}; give the folder of a training checkpoint")
    if (given / "config.json").is_file():
        return given
    inside = [path for path in (given / name, given / f"{name}_ema") if (path / "config.json").is_file()]
    if len(inside) == 2:
        raise UsageError(f"{given} holds both {name} and {name}_ema; give {inside[0]} or {inside[1]}")
    if inside:
        return inside[0]
    if list(given.glob("*lora*.safetensors")) or (given / "adapter_config.json").is_file():
        raise UsageError(f"{given} holds a LoRA, not a {name}; give it as --lora")
    raise UsageError(
        f"{given} is no {name}: it has neither a config.json nor a folder {name} or {name}_ema; give the folder of a "
        "training checkpoint"
    )


def load_network(name: str, given: Path, config: Mapping[str, Any], base: str, dtype: Any, **hub: Any) -> Any:
    """The network in the place of a model's own.

    Args:
        name: `unet` or `transformer`.
        given: as for `network_folder`.
        config: the model's index: name of a part → its library and class.
        base: the model whose other parts are used; its configuration tells how a single file is read.
        dtype: of the weights.
        **hub: arguments that say how the hub is asked.

    Raises:
        UsageError: if the model has no such part, or the network is of another class, does not fit, or lacks weights.
    """
    import diffusers

    if not config.get(name) or config[name][0] is None:
        raise UsageError(f"got --{name}, and a {config.get('_class_name')} has no {name}; leave it out")
    wanted = str(config[name][1])
    kind: Any = getattr(diffusers, wanted)
    place = network_folder(name, given)
    if place.is_dir():
        found = _config_of(place)
        if (got := str(found.get("_class_name") or found.get("architectures", [wanted])[0])) != wanted:
            raise UsageError(f"{place} holds a {got}, the model's {name} is a {wanted}; give one of the same model")
        _check_fitting(place, found, kind, name, base, hub)
    try:
        with heard() as warned:
            if place.is_file():
                network = kind.from_single_file(str(place), config=base, subfolder=name, torch_dtype=dtype, **hub)
            else:
                network = kind.from_pretrained(place, torch_dtype=dtype, **_variant_of(place))
    # every library that is used here has errors of its own
    except Exception as error:
        raise explained(f"{name} {place}", error, folder=place if place.is_dir() else None) from error
    check_complete(f"{name} {place}", warned)
    return network


def check_complete(subject: str, warned: list[str]) -> None:
    """Refuse a model of which weights are missing; the libraries fill them with random numbers and say so in a warning.

    Args:
        subject: what was loaded.
        warned: the warnings that were logged meanwhile.

    Raises:
        UsageError: with the beginning of the warning.
    """
    for warning in warned:
        if "newly initialized" in warning:
            named = re.findall(r"([\w.{}, ]+?) *\| MISSING", warning) or re.findall(r"initialized: \[(.*?)\]", warning)
            shown = ", ".join(name.strip(" -+|") for name in named[:3])
            raise UsageError(
                f"{subject} cannot be loaded: weights are missing, which would be random numbers ({shown}); copy or "
                "download it again"
            )


def class_of_file(file: Path) -> str:
    """Name of the pipeline class of a model in a single file, told from the names of its tensors.

    Raises:
        UsageError: for a file that cannot be read, or that is no whole model of a known kind.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint

    if not file.is_file():
        raise UsageError(f"no file {file}; give the path of a model in a single file")
    if file.suffix.lower() == ".gguf":
        raise UsageError(f"{file} is a GGUF file, which is not supported; give a .safetensors file")
    try:
        with heard():
            tensors: Any = load_single_file_checkpoint(str(file), local_files_only=True)
            found = infer_diffusers_model_type(tensors)
    # a damaged file leads readers to whatever error
    except Exception as error:
        raise explained(f"model {str(file)!r}", _Unreadable(file, error)) from error
    if any("lora" in key.lower() for key in tensors):
        raise UsageError(f"{file} is a LoRA; give it as --lora, and the model that it was trained on")
    if found == "v1" and not any(key.startswith("model.diffusion_model.") for key in tensors):
        # diffusers takes everything that it does not know for this
        found = "unknown"
    if found not in _CLASSES:
        raise UsageError(
            f"{file} is no single file of a model that is known here (its tensors look like {found}); give a whole "
            "model of Stable Diffusion, SDXL, SD3 or Flux, a network as --unet or --transformer, or a diffusers folder"
        )
    return _CLASSES[found]


def same_layout(kind: str, other: str) -> bool:
    """Whether pipelines of two classes read the same layout of single files, such as text-to-image and inpainting."""
    stems = [next((stem for stem in _STEMS if name.startswith(stem)), name) for name in (kind, other)]
    return stems[0] == stems[1]


def load_single_file(file: Path, kind: str, base: str | None, dtype: Any, **more: Any) -> Any:
    """The pipeline of a model in a single file.

    Args:
        file: the weights of all parts.
        kind: name of the pipeline's class.
        base: folder or hub id of the model that the file was made from: its configuration and tokenizers are used.
            None asks the hub for the usual one.
        dtype: of the weights.
        **more: further arguments of `from_single_file`.

    Raises:
        UsageError: saying what is missing.
    """
    import diffusers

    try:
        with heard() as warned:
            options = more | ({} if base is None else {"config": base})
            pipe = getattr(diffusers, kind).from_single_file(str(file), torch_dtype=dtype, **options)
    # every library that is used here has errors of its own
    except Exception as error:
        failed = explained(f"model {str(file)!r}", error, folder=None if base is None else Path(base))
        if base is None:
            raise UsageError(
                f"{failed}; or give --base FOLDER, a diffusers folder of the model that it was made from"
            ) from error
        raise failed from error
    check_complete(f"model {str(file)!r}", warned)
    return pipe


class _Unreadable(Exception):
    """A file that holds no weights that can be read."""

    def __init__(self, file: Path, error: Exception) -> None:
        super().__init__(f"it holds no weights that can be read ({' '.join(str(error).split())[:120]}); give another")


def _config_of(folder: Path) -> dict[str, Any]:
    """The configuration in a folder."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {folder / 'config.json'} ({error}); copy or download it again") from None
    if not isinstance(found, dict):
        raise UsageError(f"{folder / 'config.json'} is no configuration of a network; copy or download it again")
    return found


def _check_fitting(
    place: Path, found: Mapping[str, Any], kind: Any, name: str, base: str, hub: Mapping[str, Any]
) -> None:
    """Refuse a network whose inputs or outputs differ from those of the model's own."""
    try:
        with heard():
            expected: Any = kind.load_config(base, subfolder=name, **hub)
    # the model may lack this network, which is why another one is given
    except OSError:
        return
    for key in _FITTING:
        if key in expected and key in found and expected[key] != found[key]:
            raise UsageError(
                f"{place} does not fit the model: its {key} is {found[key]}, that of the model's own {name} is "
                f"{expected[key]}; give a {name} of the same model"
            )


def _variant_of(folder: Path) -> dict[str, str]:
    """The variant of the weights in a network's folder, if they are there as a variant only."""
    files = list(folder.glob("diffusion_pytorch_model*.safetensors"))
    if any(path.name.count(".") == 1 for path in files):
        return {}
    variants = sorted({path.name.split(".")[1].split("-")[0] for path in files if path.name.count(".") == 2})
    return {"variant": variants[0]} if variants else {}
