"""A call of a pipeline taken apart: the arguments that make one of its images alone, its noise, its output."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.pipelines.call import PER_PROMPT


class Noise:
    """The noise of a call's images, to be drawn again."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Remember it before the call with these arguments uses its generators up."""
        given = arguments.get("generator")
        self._own = isinstance(given, list) and len(given) > 1
        # a fresh generator seeds itself and leaves the global one alone
        fallback = torch.Generator()
        fallback.seed()
        generators: list[torch.Generator] = given if isinstance(given, list) else [fallback if given is None else given]
        self._devices = [each.device for each in generators]
        self._states = [each.get_state() for each in generators]
        self._known = given is not None
        self._latents = arguments.get("latents")

    def of(self, row: int, *, alone: bool) -> dict[str, Any]:
        """The arguments for the noise that image `row` had; for other noise where that cannot be told apart.

        It can where every image has a generator or latents of its own, or the image was the call's only one.
        """
        latents = {} if self._latents is None else {"latents": self._latents[row : row + 1]}
        if not self._known or not (self._own or alone):
            return {**self.other(row, 0), **latents}
        return {"generator": torch.Generator(self._devices[row]).set_state(self._states[row]), **latents}

    def other(self, row: int, attempt: int) -> dict[str, Any]:
        """The arguments for other noise, the same whenever asked for, and another in every call."""
        at = row if self._own else 0
        digest = hashlib.sha256(self._states[at].numpy().tobytes() + f"{row} {attempt}".encode()).digest()
        seed = int.from_bytes(digest[:7], "big")
        return {"generator": torch.Generator(self._devices[at]).manual_seed(seed)}


def replayed(generator: torch.Generator) -> torch.Generator:
    """Another generator in the state that this one is in."""
    return torch.Generator(generator.device).set_state(generator.get_state())


def prompt_of(arguments: Mapping[str, Any], row: int) -> str | None:
    """The caption of image `row` of a call, None if it was not given in words."""
    given = arguments.get("prompt")
    return given[row // arguments.get("num_images_per_prompt", 1)] if isinstance(given, list) else given


def single(arguments: Mapping[str, Any], row: int) -> dict[str, Any]:
    """The arguments that make image `row` of a call alone, one value per prompt in lists; without its noise."""
    prompt = row // arguments.get("num_images_per_prompt", 1)
    alone = {
        name: value[prompt : prompt + 1] if name in PER_PROMPT and isinstance(value, list | Tensor) else value
        for name, value in arguments.items()
        if name not in ("generator", "latents", "num_images_per_prompt", "batch_size")
    }
    return {name: [value] if name in PER_PROMPT and isinstance(value, str) else value for name, value in alone.items()}


def merged(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call that makes what several calls of `single`, with their noise, would make."""
    many: dict[str, Any] = {"generator": [replayed(each["generator"]) for each in calls]}
    for name, value in calls[0].items():
        if name in (*PER_PROMPT, "latents") and isinstance(value, list):
            many[name] = [item for each in calls for item in each[name]]
        elif name in (*PER_PROMPT, "latents") and isinstance(value, Tensor):
            many[name] = torch.cat([each[name] for each in calls])
    if "batch_size" in calls[0]:
        many["batch_size"] = len(calls)
    return {**calls[0], **many}


def replaced(output: Any, row: int, other: Any | None, place: int = 0) -> Any:
    """A call's output with everything that it says of one image taken from another call.

    Args:
        output: a tuple, or an output of diffusers, which is changed: the images first, a list of PIL images, an array
            or a tensor; behind them may stand Stable Diffusion's safety flags.
        row: which image.
        other: the output of another call. None makes the image black and leaves its safety flag, as diffusers' own
            checker does.
        place: which image of `other`.
    """
    parts = dict(enumerate(output)) if isinstance(output, tuple) else dict(output)
    for number, (name, values) in enumerate(parts.items()):
        if values is None or (number > 0 and other is None):
            continue
        if other is not None:
            new = other[name][place]
        else:
            new = Image.new(values[row].mode, values[row].size) if isinstance(values, list) else 0
        if isinstance(values, list):
            parts[name] = [*values[:row], new, *values[row + 1 :]]
        else:
            parts[name] = values.clone() if isinstance(values, Tensor) else values.copy()
            parts[name][row] = new
    if isinstance(output, tuple):
        return tuple(parts.values())
    for name, values in parts.items():
        output[name] = values
    return output
