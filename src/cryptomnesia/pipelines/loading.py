"""Load a pipeline: a local diffusers folder, a hub id, or the bundled model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.families import FAMILIES, adapter_for

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
"""Name on the command line → class of diffusers; `own` keeps the pipeline's."""


DTYPES = ("float32", "float16", "bfloat16")


def load_pipeline(model: str, *, scheduler: str = "ddim", device: str | None = None, dtype: str | None = None) -> Any:
    """Load `model` and give it a scheduler made from its own scheduler's configuration.

    Args:
        model: `bundled`, a local diffusers folder, or a hub id such as `org/name`.
        scheduler: one of `SCHEDULERS`, or `own`.
        device: where to put it; CUDA or MPS when there is one, else the CPU.
        dtype: of the weights, one of `DTYPES`; float32 when None.

    Raises:
        UsageError: if there is no such model, its family is unknown, or the scheduler or dtype is.
    """
    import diffusers
    import torch

    if scheduler != "own" and scheduler not in SCHEDULERS:
        raise UsageError(f"got the unknown scheduler {scheduler!r}; known are own, {', '.join(SCHEDULERS)}")
    if dtype not in (None, *DTYPES):
        raise UsageError(f"got the unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
    pipe = _load(model, dtype or "float32")
    flow = adapter_for(pipe).kind == "flow_prediction"
    if flow and scheduler != "own":
        raise UsageError(
            f"{model} is trained on rectified flow, which {scheduler} does not solve; give the scheduler own"
        )
    if scheduler != "own":
        kind = getattr(diffusers, SCHEDULERS[scheduler])
        # some solvers would clip x̂0 to ±1, which ruins latents; SD's own configurations switch that off
        more = {"clip_sample": False} if "clip_sample" in signature(kind).parameters else {}
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return pipe.to(device)


def model_folder(model: str) -> Path | None:
    """The local folder of `model`, None for a hub id."""
    if model == BUNDLED:
        from cryptomnesia.proving_ground import BUNDLE

        return BUNDLE / "pipeline"
    return Path(model) if Path(model).exists() else None


def check_exists(model: str) -> Path | None:
    """The local folder of `model`, None for a hub id; loads nothing.

    Raises:
        UsageError: if it can be neither.
    """
    folder = model_folder(model)
    if folder is None and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise UsageError(f"no model {model!r}; give a local diffusers folder, a hub id such as org/name, or {BUNDLED}")
    if folder is not None and not (folder / "model_index.json").is_file():
        raise UsageError(f"{folder} is no diffusers folder: it has no model_index.json; give the folder that has one")
    return folder


def _load(model: str, dtype: str) -> Any:
    """The pipeline, its family checked before anything large is read."""
    import torch
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    folder = check_exists(model)
    try:
        with quiet():
            config: Any = DiffusionPipeline.load_config(str(folder or model))
            family = config.get("_class_name")
            if family not in FAMILIES:
                raise UsageError(
                    f"{model} is a pipeline of the unknown family {family}; known are {', '.join(FAMILIES)}"
                )
            # without a dtype transformers would take the one that the text encoder's configuration names
            return DiffusionPipeline.from_pretrained(str(folder or model), dtype=getattr(torch, dtype))
    except UsageError:
        raise
    except (OSError, ValueError, ImportError, AttributeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"model {model!r} cannot be loaded: {reason[:300]}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices and progress bars that diffusers and transformers print when imported or loading."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
