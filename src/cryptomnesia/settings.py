"""The settings of a generation, and how to read them off a call of a pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        name: _plain(value)
        for name, value in given.items()
        if name not in NEUTRAL | own and not _same(value, defaults.get(name))
    }
    height, width = settings.get("height"), settings.get("width")
    return Sampling(
        steps=settings["num_inference_steps"],
        guidance=float(settings["guidance_scale"]),
        height=None if height == native[0] else height,
        width=None if width == native[1] else width,
        options=options,
    )


def _same(value: Any, default: Any) -> bool:
    return value is default or (not isinstance(value, Tensor) and value == default)


def _plain(value: Any) -> Any:
    """One value for a list that repeats it, the type's name for what JSON does not know."""
    if isinstance(value, list) and value and all(_same(each, value[0]) for each in value):
        value = value[0]
    return value if isinstance(value, str | int | float | list | dict) else f"a {type(value).__name__}"
