"""Load a pipeline: a local diffusers folder, a hub id, or the bundled model."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families import check_family, family_of

BUNDLED = "bundled"
"""The name of the model that comes with the package."""

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


def load_pipeline(model: str, *, scheduler: str = "own", device: str | None = None, dtype: str | None = None) -> Any:
    """Load a model as a pipeline of diffusers.

    The bundled model is a stock pipeline, except that `guidance_scale` has another default value in its call: the scale
    at which the model's pictures are best.

    Args:
        model: `bundled`, a local diffusers folder, or a hub id such as `org/name`.
        scheduler: `own` for the model's own scheduler, or a name in `SCHEDULERS`; that scheduler is made from the
            configuration of the model's own.
        device: the device to put the model on; by default CUDA or MPS if there is one, else the CPU.
        dtype: number format of the weights, one of `DTYPES`; float32 by default.

    Raises:
        UsageError: if there is no such model, or the model's family, the scheduler or the dtype is unknown.
    """
    import diffusers
    import torch

    if scheduler != "own" and scheduler not in SCHEDULERS:
        raise UsageError(f"got the unknown scheduler {scheduler!r}; known are own, {', '.join(SCHEDULERS)}")
    if dtype not in (None, *DTYPES):
        raise UsageError(f"got the unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
    pipe = _load(model, dtype or "float32")
    if scheduler != "own":
        if family_of(pipe).kind == "flow_prediction":
            raise UsageError(
                f"{model} is trained on rectified flow, which {scheduler} does not solve; give the scheduler own"
            )
        kind = getattr(diffusers, SCHEDULERS[scheduler])
        # solvers that clip x̂_0 to ±1 by default would ruin latents; SD's own configurations switch that off
        more = {"clip_sample": False} if "clip_sample" in inspect.signature(kind).parameters else {}
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    pipe = pipe.to(device)
    if model == BUNDLED:
        from cryptomnesia.proving_ground import BUNDLE
        from cryptomnesia.proving_ground.manifest import Manifest

        set_call_defaults(pipe, guidance_scale=Manifest.load(BUNDLE).guidance)
    return pipe


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


def model_folder(model: str) -> Path | None:
    """The local folder of `model`, None for a hub id."""
    if model == BUNDLED:
        from cryptomnesia.proving_ground import BUNDLE

        return BUNDLE / "pipeline"
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
    if folder is None and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise UsageError(f"no model {model!r}; give a local diffusers folder, a hub id such as org/name, or {BUNDLED}")
    if folder is not None and not (folder / "model_index.json").is_file():
        raise UsageError(f"{folder} is no diffusers folder: it has no model_index.json; give the folder that has one")
    return folder


def _load(model: str, dtype: str) -> Any:
    """The pipeline of a model. Its family is checked before anything large is read."""
    import torch
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    folder = check_exists(model)
    try:
        with quiet():
            config: Any = DiffusionPipeline.load_config(str(folder or model))
            family = config.get("_class_name")
            check_family(str(family), model)
            # without a dtype, transformers would use the one in the text encoder's configuration
            return DiffusionPipeline.from_pretrained(str(folder or model), dtype=getattr(torch, dtype))
    except UsageError:
        raise
    except (OSError, ValueError, ImportError, AttributeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"model {model!r} cannot be loaded: {reason[:300]}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence notices and progress bars of diffusers and transformers inside the block, then put them back."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    downloads_silent = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, level, bar in zip(libraries, levels, bars, strict=True):
                library.set_verbosity(level)
                if bar:
                    library.enable_progress_bar()
            # transformers switches the progress bars of downloads together with its own
            if downloads_silent:
                disable_progress_bars()
            else:
                enable_progress_bars()
