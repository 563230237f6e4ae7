"""The arguments of a pipeline's call, and the settings of the generation that they contain."""

import hashlib
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.settings import Sampling

PER_PROMPT = frozenset(
    f"{sign}{name}"
    for sign in ("", "negative_")
    for name in (
        *("prompt", "prompt_2", "prompt_3", "prompt_4"),
        *("prompt_embeds", "pooled_prompt_embeds", "prompt_embeds_t5", "prompt_embeds_llama3"),
        *("prompt_embeds_mask", "prompt_attention_mask"),
    )
)
"""Arguments of diffusers' pipelines with one value per prompt."""

NEUTRAL = frozenset(name for name in PER_PROMPT if not name.startswith("negative_")) | {
    "batch_size",
    "callback",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "callback_steps",
    "generator",
    "latents",
    "num_images_per_prompt",
    "output_type",
    "return_dict",
}
"""Arguments on which a calibration does not depend: they choose the image, not the way in which images are made.

The callbacks that diffusers has classes for are an exception, because they switch off guidance or adapters.
"""

_SAMPLED = frozenset({"num_inference_steps", "height", "width"})
"""Arguments that `Sampling` has fields for, beside the guidance."""


def own_class(pipe: Any) -> type[Any]:
    """The class of a pipeline, without the class that a guard puts before it."""
    kind = type(pipe)
    return kind.__mro__[1] if "guarded_by" in vars(kind) else kind


def defaults_of(pipe: Any) -> dict[str, Any]:
    """Name of every argument of the pipeline's call → its default value, `inspect.Parameter.empty` if it has none."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def sampling_of(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    native: tuple[int, int],
    guidance: str = "guidance_scale",
) -> Sampling:
    """The settings of a pipeline's call.

    Args:
        given: arguments of the call by name.
        defaults: the pipeline's defaults for the arguments that are not given.
        native: height and width in pixels of the pictures that the model makes by default.
        guidance: name of the argument for the guidance.

    Raises:
        UsageError: for an object as value whose content cannot be read; see `canonical`.
    """
    settings = {**defaults, **given}
    options = {
        name: value
        for name, value in given.items()
        if (name not in NEUTRAL | _SAMPLED | {guidance} or isinstance(value, PipelineCallback | MultiPipelineCallbacks))
        and canonical(name, value) != canonical(name, defaults.get(name))
    }
    height, width = settings.get("height"), settings.get("width")
    return Sampling(
        steps=settings["num_inference_steps"],
        guidance=float(settings[guidance]),
        height=None if height == native[0] else height,
        width=None if width == native[1] else width,
        options=options,
    )


def canonical(name: str, value: Any) -> Any:
    """A JSON value that is the same for two ways of writing an argument, and different for different arguments.

    A list with one value per prompt becomes that value if all are the same. Pictures, tensors and arrays become a hash
    of their content; a tensor has the same hash in half and in double precision if the numbers are the same.

    Args:
        name: of the argument.
        value: of the argument.

    Raises:
        UsageError: for an object whose content cannot be read, because it could not be told from another one.
    """
    if isinstance(value, Tensor):
        return _tensor(name, value)
    if isinstance(value, PIL.Image.Image):
        colours = f"{value.getpalette()} {value.info.get('transparency')}"
        return _hash(f"picture {value.mode} {value.size} {colours}".encode(), value.tobytes())
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return _hash(f"array {value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).tobytes())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        items = [canonical("" if name in PER_PROMPT else name, item) for item in value]
        if name in PER_PROMPT and items and all(item == items[0] for item in items):
            return canonical(name, items[0])
        return items
    if isinstance(value, Mapping):
        # 1 and "1" are two keys
        return {
            key if isinstance(key, str) else repr(key): canonical(f"{name}[{key!r}]" if name else "", item)
            for key, item in value.items()
        }
    if value is None or value is inspect.Parameter.empty:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"got {value} for {name or 'an argument'}; give a finite number")
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, int | float):
        return value
    raise UsageError(
        f"got {name or 'an argument'} of type {type(value).__name__}, whose content a calibration cannot hold; give a "
        "number, a text, a picture, a tensor, or a list or dictionary of these"
    )


def _tensor(name: str, value: Tensor) -> str:
    try:
        values = value.detach().cpu()
        values = values.double() if values.is_floating_point() else values
        return _hash(f"tensor {values.dtype} {tuple(values.shape)}".encode(), values.contiguous().numpy().tobytes())
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"got {name or 'an argument'}, a tensor on {value.device} of {value.layout} whose values cannot be read; "
            "give an ordinary tensor"
        ) from error


def _text(name: str, value: str) -> str:
    """A text; of the name of a picture's file the content of the file, which may change under its name.

    Raises:
        UsageError: for the address of a picture.
    """
    if name.partition("[")[0] in PER_PROMPT or not any(word in name for word in ("image", "mask")):
        return value
    if "://" in value:
        raise UsageError(
            f"got {name}={value!r}, whose content may change under its address; load the picture and give it"
        )
    try:
        return _hash(b"file", Path(value).read_bytes())
    except (OSError, ValueError):
        return value


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def silent(pipe: Any) -> Iterator[None]:
    """Switch the pipeline's own progress bar off inside the block, and then back to what it was."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
