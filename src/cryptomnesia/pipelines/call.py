"""The arguments of a pipeline's call, and the settings that can be read off them."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.settings import Sampling

PER_PROMPT = frozenset(
    f"{sign}{name}"
    for sign in ("", "negative_")
    for name in ("prompt", "prompt_2", "prompt_3", "prompt_embeds", "pooled_prompt_embeds")
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
"""Arguments that a calibration need not know: they choose the image, not the way in which images are made."""

_SAMPLED = frozenset({"num_inference_steps", "guidance_scale", "height", "width"})


def defaults_of(pipe: Any) -> dict[str, Any]:
    """The arguments of the pipeline's own call by name, each with its default value; `inspect.Parameter.empty` where
    there is none.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def sampling_for(pipe: Any, call: Mapping[str, Any]) -> Sampling:
    """The settings of calls with the arguments `call`, and for the rest with the pipeline's own defaults.

    Args:
        pipe: a pipeline of a known family.
        call: arguments by the names that the pipeline gives them; None stands for the pipeline's default.

    Raises:
        UsageError: for an argument that the pipeline does not take, or that this library gives for every image.
    """
    from cryptomnesia.pipelines.families import family_of

    family = family_of(pipe)
    defaults = defaults_of(pipe)
    given = {name: value for name, value in call.items() if value is not None}
    if unknown := sorted(given.keys() - defaults.keys()):
        raise UsageError(
            f"a {type(pipe).__name__} takes no {', '.join(unknown)}; leave it out, or give one of "
            f"{', '.join(sorted(defaults.keys() - NEUTRAL))}"
        )
    if taken := sorted(given.keys() & NEUTRAL):
        raise UsageError(
            f"got {', '.join(taken)}, which is given for every image here; give prompts and seeds, and leave it out"
        )
    return family.sampling(given, defaults)


def sampling_of(given: Mapping[str, Any], defaults: Mapping[str, Any], *, native: tuple[int, int]) -> Sampling:
    """The settings of a pipeline's call.

    Args:
        given: the call's arguments by name.
        defaults: the pipeline's values for those that are not given.
        native: height and width in pixels of the pictures that the model makes by default.

    Raises:
        UsageError: for an argument whose value cannot be told from others of its kind.
    """
    settings = {**defaults, **given}
    options = {
        name: value
        for name, value in given.items()
        if name not in NEUTRAL | _SAMPLED and canonical(name, value) != canonical(name, defaults.get(name))
    }
    height, width = settings.get("height"), settings.get("width")
    return Sampling(
        steps=settings["num_inference_steps"],
        guidance=float(settings["guidance_scale"]),
        height=None if height == native[0] else height,
        width=None if width == native[1] else width,
        options=options,
    )


def canonical(name: str, value: Any) -> Any:
    """The JSON value that stands for an argument's value, in whatever way it was written.

    One value per prompt becomes that value if all are the same. Pictures, tensors and arrays become a hash of their
    content.

    Raises:
        UsageError: for an object whose content cannot be read, so that two of them could not be told apart.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, PIL.Image.Image):
        return _hash(f"{value.mode} {value.size}".encode(), value.tobytes())
    if isinstance(value, np.ndarray):
        return _hash(f"{value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).tobytes())
    if isinstance(value, list | tuple):
        items = [canonical("", item) for item in value]
        if name in PER_PROMPT and items and all(item == items[0] for item in items):
            return canonical(name, items[0])
        return items
    if isinstance(value, Mapping):
        return {str(key): canonical("", item) for key, item in value.items()}
    if value is None or value is inspect.Parameter.empty:
        return None
    if isinstance(value, str | int | float):
        return value
    raise UsageError(
        f"got {name or 'an argument'} of type {type(value).__name__}, whose content a calibration cannot hold; give a "
        "number, a text, a picture, a tensor, or a list or dictionary of these"
    )


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def silent(pipe: Any) -> Iterator[None]:
    """Switch the pipeline's own progress bar off, and back to what it was."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
