"""Load a pipeline: a local diffusers folder, a hub id, a single file, or the bundled model."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families import check_family, family_of
from cryptomnesia.pipelines.origins.adapters import as_loras, attach_loras, check_loras
from cryptomnesia.pipelines.origins.failures import explained
from cryptomnesia.pipelines.origins.notices import heard
from cryptomnesia.pipelines.origins.notices import quiet as quiet
from cryptomnesia.pipelines.origins.parts import (
    check_complete,
    class_of_file,
    is_single_file,
    load_network,
    load_single_file,
    network_folder,
    same_layout,
)
from cryptomnesia.pipelines.origins.places import BUNDLED as BUNDLED
from cryptomnesia.pipelines.origins.places import bundle_of as bundle_of
from cryptomnesia.pipelines.origins.places import check_exists as check_exists
from cryptomnesia.pipelines.origins.places import model_folder as model_folder
from cryptomnesia.settings import CallSettings

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
}
"""Name of a scheduler → its class in diffusers. The name `own` stands for the model's own scheduler."""

DTYPES = ("float32", "float16", "bfloat16")
"""Number formats of weights."""


FROM_PRETRAINED = frozenset(
    {
        "cache_dir",
        "custom_pipeline",
        "custom_revision",
        "device_map",
        "disable_mmap",
        "force_download",
        "load_connected_pipeline",
        "local_files_only",
        "low_cpu_mem_usage",
        "max_memory",
        "offload_folder",
        "offload_state_dict",
        "provider",
        "provider_options",
        "proxies",
        "quantization_config",
        "sess_options",
        "token",
        "trust_remote_code",
        "use_flashpack",
        "use_onnx",
        "use_safetensors",
    }
)
"""Arguments of diffusers' `from_pretrained`, without parts of a pipeline and those that `load_pipeline` has itself."""

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Arguments that say how the hub is asked."""


def load_pipeline(
    model: str | Path,
    *,
    scheduler: str = "own",
    device: Any = None,
    dtype: Any = None,
    variant: str | None = None,
    revision: str | None = None,
    lora: Any = (),
    unet: Any = None,
    transformer: Any = None,
    base: str | Path | None = None,
    without: str | Sequence[str] = (),
    **from_pretrained: Any,
) -> Any:
    """Load a model as a pipeline of diffusers.

    The bundled model is a stock pipeline, except that `guidance_scale` has another default value in its call: the scale
    at which the model's pictures are best.

    Args:
        model: `bundled`, `bundled:` and the name of a proving ground whose model comes with the package, a local
            diffusers folder, a hub id such as `org/name`, or a single file of weights.
        scheduler: `own` for the model's own scheduler, or a name in `SCHEDULERS`; that scheduler is made from the
            configuration of the model's own.
        device: the device to put the model on; by default CUDA or MPS if there is one, else the CPU.
        dtype: number format of the weights, one of `DTYPES`, as a text or as PyTorch has it; float32 by default.
        variant: of the files of weights, for instance `fp16`.
        revision: branch, tag or commit of the hub's repository.
        lora: LoRAs to switch on: one or a list, each `PATH`, `PATH:SCALE` or a pair of both. A path is a file, a folder
            or a hub id. Needs the package `peft`.
        unet: a network instead of the model's own: a loaded one; a folder with its `config.json` and weights; a
            checkpoint of diffusers' training scripts, which holds a folder `unet` or `unet_ema`; or a single file.
        transformer: the same for models with a transformer.
        base: for a model in a single file: the diffusers folder, or the hub id, of the model that it was made from.
            Configuration and tokenizers come from there. By default diffusers asks the hub for the usual one.
        without: names of parts to leave out, for instance `text_encoder_3` of Stable Diffusion 3.
        **from_pretrained: further arguments of diffusers' `from_pretrained`, and parts of the pipeline by their names,
            for instance `safety_checker=None`. An unknown name is refused before anything is loaded.

    Raises:
        UsageError: in one line, if there is no such model, if something that was named is unknown, missing, damaged or
            does not fit, or if the hub does not give it.

    Example:
        pipe = load_pipeline("bundled", device="cpu", scheduler="ddim")
    """
    import diffusers

    model = str(model)
    if scheduler != "own" and scheduler not in SCHEDULERS:
        raise UsageError(f"got the unknown scheduler {scheduler!r}; known are own, {', '.join(SCHEDULERS)}")
    number = _dtype(dtype)
    placed = None if "device_map" in from_pretrained and device is None else chosen_device(device)
    loras = as_loras(lora)
    check_loras(loras)
    networks = {name: given for name, given in (("unet", unet), ("transformer", transformer)) if given is not None}
    for name, given in networks.items():
        if isinstance(given, str | Path):
            network_folder(name, Path(given))
    files = {name: value for name, value in (("variant", variant), ("revision", revision)) if value is not None}
    pipe = _load(
        model, number, base, [without] if isinstance(without, str) else without, networks, files | from_pretrained
    )
    attach_loras(pipe, loras, **{name: value for name, value in from_pretrained.items() if name in _HUB})
    if scheduler != "own":
        if family_of(pipe).kind == "flow_prediction":
            raise UsageError(
                f"{model} is trained on rectified flow, which {scheduler} does not solve; give the scheduler own"
            )
        kind = getattr(diffusers, SCHEDULERS[scheduler])
        # solvers that clip x̂_0 to ±1 by default would ruin latents; SD's own configurations switch that off
        more = {"clip_sample": False} if "clip_sample" in inspect.signature(kind).parameters else {}
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)
    # refuses a scheduler that does not solve the model
    family_of(pipe)
    if placed is not None:
        try:
            pipe = pipe.to(placed)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise explained(f"model {model!r}", error) from error
    if (bundle := bundle_of(str(model))) is not None and "guidance_scale" in inspect.signature(
        pipe.__call__
    ).parameters:
        from cryptomnesia.proving_ground.manifest import Manifest

        set_call_defaults(pipe, guidance_scale=Manifest.load(bundle).guidance)
    return pipe


def pipeline_of(settings: CallSettings, model: str | None = None) -> Any:
    """The pipeline that settings describe.

    Args:
        settings: of a command or an audit.
        model: another model that is to be loaded in the same way, without LoRA and other networks. If it is the model
            of the settings itself, as the base of a LoRA is, it is loaded at their revision and variant.
    """
    as_described = model is None
    same = model is None or model == str(settings.model)
    return load_pipeline(
        str(settings.model) if model is None else model,
        scheduler=settings.scheduler,
        device=settings.device,
        dtype=settings.dtype,
        variant=settings.variant if same else None,
        revision=settings.revision if same else None,
        lora=settings.lora if as_described else (),
        unet=settings.unet if as_described else None,
        transformer=settings.transformer if as_described else None,
        base=settings.base if same else None,
        without=settings.without,
    )


def set_call_defaults(pipe: Any, **defaults: Any) -> None:
    """Give arguments of a pipeline's call other default values.

    The pipeline becomes an instance of a subclass of its class. The subclass has the same name, and the signature of
    its call shows the new defaults.

    Args:
        pipe: the pipeline.
        **defaults: arguments of its call and their new default values.
    """
    kind = type(pipe)
    signature = inspect.signature(kind.__call__)

    @wraps(kind.__call__)
    def __call__(called: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(called, *args, **kwargs).arguments
        missing = {name: value for name, value in defaults.items() if name not in given}
        return kind.__call__(called, *args, **kwargs, **missing)

    parameters = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
    ]
    __call__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    attributes = {"__call__": __call__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    pipe.__class__ = type(kind.__name__, (kind,), attributes)


def _load(
    model: str,
    dtype: Any,
    base: str | Path | None,
    without: Sequence[str],
    networks: Mapping[str, Any],
    more: Mapping[str, Any],
) -> Any:
    """The pipeline of a model. Its family and all names are checked before anything large is read."""
    from diffusers import DiffusionPipeline

    folder = check_exists(model)
    hub = {name: value for name, value in more.items() if name in _HUB}
    single = is_single_file(model) and folder is None
    if base is not None and not single:
        raise UsageError(f"got base {base} with {model}, which is no single file; leave it out")
    if single and "variant" in more:
        raise UsageError(f"got the variant {more['variant']!r} with {model}, which is a single file; leave it out")
    if folder is not None and "revision" in more:
        raise UsageError(f"got the revision {more['revision']!r} with {model}, which is a local folder; leave it out")
    config = _index(model, folder, base, hub, single=single)
    kind = str(config.get("_class_name"))
    check_family(kind, model)
    more = dict(more)
    _check_arguments(kind, more, single=single)
    more |= _left_out(config, without, more)
    for name, given in networks.items():
        where = str(base or model) if single else str(folder or model)
        path = isinstance(given, str | Path)
        more[name] = load_network(name, Path(given), config, where, dtype, **hub) if path else given
    if single:
        return load_single_file(Path(model), kind, None if base is None else str(base), dtype, **more)
    try:
        with heard() as warned:
            # without a dtype, transformers would use the one in the text encoder's configuration
            pipe = DiffusionPipeline.from_pretrained(str(folder or model), dtype=dtype, **more)
    # every library that is used here has errors of its own
    except Exception as error:
        raise explained(f"model {model!r}", error, folder=folder, variant=more.get("variant")) from error
    check_complete(f"model {model!r}", warned)
    return pipe


def _index(model: str, folder: Path | None, base: str | Path | None, hub: Mapping[str, Any], *, single: bool) -> Any:
    """What model_index.json says: the pipeline's class, and the class of every part."""
    from diffusers import DiffusionPipeline

    if single and base is None:
        return {"_class_name": class_of_file(Path(model))}
    where = str(base) if single else str(folder or model)
    if single:
        check_exists(where)
    try:
        with heard():
            config: Any = DiffusionPipeline.load_config(where, **hub)
    # every library that is used here has errors of its own
    except Exception as error:
        raise explained(f"model {where!r}", error, folder=folder) from error
    if not isinstance(config, dict):
        raise UsageError(f"model {where!r} cannot be loaded: its model_index.json is no object; copy it again")
    if single and not same_layout(kind := class_of_file(Path(model)), str(config.get("_class_name"))):
        raise UsageError(f"{model} holds a {kind}, the base {base} is a {config.get('_class_name')}; give another base")
    return config


def _check_arguments(kind: str, given: Mapping[str, Any], *, single: bool) -> None:
    """Refuse arguments that neither `from_pretrained` nor the pipeline's class takes; diffusers would ignore them."""
    made = _class_of(kind)
    if made is None:
        return
    parts = [name for name in inspect.signature(made.__init__).parameters if name != "self"]
    known = {*parts, *FROM_PRETRAINED, "variant", "revision"} | ({"original_config"} if single else set())
    for name in sorted(given.keys() - known):
        options = [name for name in inspect.signature(load_pipeline).parameters if name != "from_pretrained"]
        guess = get_close_matches(name.removeprefix("torch_"), [*options, *known], n=1)
        hint = f" (did you mean {guess[0]}?)" if guess else ""
        raise UsageError(
            f"got the unknown argument {name}{hint}; leave it out, or give an argument of from_pretrained or a part of "
            f"a {kind}: {', '.join(parts)}"
        )


def _class_of(kind: str) -> Any:
    """A pipeline class of diffusers by its name, None for a class of another package."""
    import diffusers

    # transformers gives notices when diffusers imports it
    with quiet():
        return getattr(diffusers, kind, None)


def _left_out(config: Mapping[str, Any], without: Sequence[str], given: Mapping[str, Any]) -> dict[str, None]:
    """The parts that are left out, or were when the model was saved, as arguments; an encoder with its tokenizer."""
    kind = str(config["_class_name"])
    free = {*getattr(_class_of(kind), "_optional_components", ())}
    free -= {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    missing: set[str] = set()
    if kind.startswith("StableDiffusion3"):
        free |= {"text_encoder_3", "tokenizer_3"}
        # diffusers saves a model without its third encoder, and would then refuse it
        missing = {name for name in ("text_encoder_3", "tokenizer_3") if not (config.get(name) or [None])[0]}
        missing -= given.keys()
    for name in without:
        if name not in free:
            raise UsageError(f"a {kind} cannot do without {name!r}; give one of {', '.join(sorted(free)) or 'none'}")
        if given.get(name) is not None:
            raise UsageError(f"got {name}, and without={name!r}; give one of them")
    pairs = {name: name.replace("text_encoder", "tokenizer") for name in without}
    return dict.fromkeys([*without, *missing, *(pair for name, pair in pairs.items() if pair != name and pair in free)])


def _dtype(given: Any) -> Any:
    """The number format of PyTorch."""
    import torch

    name = "float32" if given is None else str(given).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"got the unknown dtype {given!r}; known are {', '.join(DTYPES)}")
    return getattr(torch, name)


def chosen_device(given: Any) -> Any:
    """The device to put a model on, by default a GPU if there is one.

    Raises:
        UsageError: for one that is unknown, or that this machine does not have.
    """
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError, ValueError):
        raise UsageError(f"got the unknown device {given!r}; give cpu, cuda, cuda:1 or mps") from None
    module = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}.get(device.type)
    if device.type == "cpu":
        return device
    if module is None:
        raise UsageError(f"got the device {given!r}; give cpu, cuda, cuda:1 or mps")
    count = module.device_count() if module.is_available() else 0
    if (device.index or 0) >= count:
        has = f"{count} of its kind" if count else "none of its kind that PyTorch can use"
        raise UsageError(f"got the device {given}, and this machine has {has}; give another, for instance cpu")
    return device
