"""The settings of a generation, and how to read them off a call of a pipeline."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

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
"""Arguments that a calibration need not know: they pick the image, not the way images are made."""


@dataclass(frozen=True)
class Sampling:
    """The settings of a generation that a calibration is bound to.

    Attributes:
        steps: solver steps.
        guidance: guidance scale; 1 switches the unconditional branch off.
        height: of the picture in pixels, the model's own when None.
        width: likewise.
        options: further arguments of every call, `negative_prompt` or `guidance_rescale` for instance.
    """

    steps: int = 50
    guidance: float = 7.5
    height: int | None = None
    width: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def sampling_of(given: Mapping[str, Any], defaults: Mapping[str, Any], *, native: tuple[int, int]) -> Sampling:
    """The settings of a pipeline's call.

    Args:
        given: the call's arguments by name.
        defaults: what the pipeline takes for those that are not given.
        native: height and width in pixels that the model makes unasked.
    """
    settings = {**defaults, **given}
    own = {"num_inference_steps", "guidance_scale", "height", "width"}
    options = {
        name: canonical(name, value)
        for name, value in given.items()
        if name not in NEUTRAL | own and canonical(name, value) != canonical(name, defaults.get(name))
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
    """The JSON value that stands for an argument's value, however it was written.

    One value per prompt becomes that value if all are the same; tensors and arrays become a hash, what JSON does not
    know its type's name.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, np.ndarray):
        return f"sha256:{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, list | tuple):
        items = [canonical("", item) for item in value]
        if name in PER_PROMPT and items and all(item == items[0] for item in items):
            return canonical(name, items[0])
        return items
    if isinstance(value, Mapping):
        return {str(key): canonical("", item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
