"""Arguments of a pipeline's call that were given as texts, `KEY=VALUE`."""

import inspect
import json
import keyword
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from cryptomnesia.errors import UsageError

SETTINGS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "height": "height",
    "width": "width",
    "negative_prompt": "negative_prompt",
}
"""Arguments of a call → the settings that they are the same as."""


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Name → value of every `KEY=VALUE`; a value is read as JSON, and is the text itself if it is no JSON.

    Whether the pipeline takes an argument of that name is seen when the pipeline is loaded.

    Raises:
        UsageError: for a text without `=`, a key that is no name, one that is given twice, or one that has a setting of
            its own.

    Example:
        >>> parse_options(["true_cfg_scale=4", "prompt_2=a red circle"])
        {'true_cfg_scale': 4, 'prompt_2': 'a red circle'}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, found, value = text.partition("=")
        name = name.strip()
        if not found or not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"got the option {text!r}; give KEY=VALUE, for instance eta=0.5")
        if name in SETTINGS:
            flag = SETTINGS[name].replace("_", "-")
            raise UsageError(f"got the option {name}, which has a setting of its own; give --{flag}")
        if name in options:
            raise UsageError(f"got the option {name} twice; give it once")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """The JSON value of a text, or the text itself; NaN and infinity, which JSON does not have, stay texts."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _finite(number: str) -> float:
    """The value of a number, which Python would take for infinite where it is too large."""
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def check_values(pipe: Any, given: Mapping[str, Any]) -> None:
    """Refuse numbers and texts that are of another type than the pipeline's call says, or that it could not use.

    Lists and objects, such as tensors and pictures, are left to the pipeline.

    Raises:
        UsageError: naming the argument, its value and what is expected.
    """
    _check_types(pipe, given)
    if type(given.get("clip_skip")) is int:
        _check_clip_skip(pipe, given["clip_skip"])


def _check_clip_skip(pipe: Any, skipped: int) -> None:
    """Refuse a number of skipped layers that the text encoders do not have; diffusers counts from the last one back.

    A number below 0 would make a picture, from the wrong end of the encoder.
    """
    encoders: list[Any] = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    layers = [encoder.config.num_hidden_layers for encoder in encoders if "CLIP" in type(encoder).__name__]
    # pipelines of two encoders read the last layer but one
    several = hasattr(pipe, "text_encoder_2")
    most = min(layers, default=0) - several
    if layers and not 0 <= skipped <= most:
        raise UsageError(f"got clip_skip={skipped}, and a {type(pipe).__name__} can skip 0 to {most} layers; give one")
    if layers and not several and not hasattr(pipe.text_encoder, "text_model"):
        raise UsageError(
            f"got clip_skip={skipped}, which the installed diffusers cannot do with the installed transformers "
            f"(its {type(pipe.text_encoder).__name__} has no text_model); leave it out, or install a newer diffusers"
        )


def _check_types(pipe: Any, given: Mapping[str, Any]) -> None:
    kind = type(pipe)
    try:
        parameters = inspect.signature(kind.__call__, eval_str=True).parameters
    except (NameError, TypeError, AttributeError):
        # annotations that only a type checker can read
        return
    for name, value in given.items():
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if annotation is inspect.Parameter.empty or type(value) not in (str, bool, int, float):
            continue
        try:
            TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(value)
        except ValidationError:
            shown = inspect.formatannotation(annotation)
            raise UsageError(
                f"got {name}={value!r}, and a {kind.__name__} expects {shown}; give such a value"
            ) from None
        except (PydanticUserError, TypeError):
            continue
