"""One image of a pipeline's call: the arguments that make it alone, its noise, and its place in the output."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cryptomnesia.pipelines.call import PER_PROMPT


class Noise:
    """The noise of a call's images, which can be drawn again."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Remember the state of the call's generators, before the call draws from them."""
        given = arguments.get("generator")
        self._one_each = isinstance(given, list) and len(given) > 1
        # a fresh generator seeds itself and leaves the global one alone
        fallback = torch.Generator()
        fallback.seed()
        generators: list[torch.Generator] = given if isinstance(given, list) else [fallback if given is None else given]
        self._devices = [generator.device for generator in generators]
        self._states = [generator.get_state() for generator in generators]
        self._known = given is not None
        self._latents = arguments.get("latents")

    def of(self, row: int, *, alone: bool) -> dict[str, Any]:
        """The arguments that give image `row` the noise that it had, or other noise where that is not known.

        It is known if every image has its own generator or latents, or if the image is `alone` in its call.
        """
        latents = {} if self._latents is None else {"latents": self._latents[row : row + 1]}
        if not self._known or not (self._one_each or alone):
            return {**self.other(row, 0), **latents}
        return {"generator": torch.Generator(self._devices[row]).set_state(self._states[row]), **latents}

    def other(self, row: int, attempt: int) -> dict[str, Any]:
        """The arguments that give image `row` other noise: the same for the same attempt, but not in another call."""
        at = row if self._one_each else 0
        digest = hashlib.sha256(self._states[at].numpy().tobytes() + f"{row} {attempt}".encode()).digest()
        seed = int.from_bytes(digest[:7], "big")
        return {"generator": torch.Generator(self._devices[at]).manual_seed(seed)}


def replayed(generator: torch.Generator) -> torch.Generator:
    """A copy of a generator: it draws the same numbers and leaves the original alone."""
    return torch.Generator(generator.device).set_state(generator.get_state())


def prompt_of(arguments: Mapping[str, Any], row: int) -> str | None:
    """The caption of image `row` of a call, None if it was not given in words."""
    given = arguments.get("prompt")
    return given[_prompt_number(arguments, row)] if isinstance(given, list) else given


def single(arguments: Mapping[str, Any], row: int, pictures: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The arguments that make image `row` of a call alone, without those for its noise.

    Arguments with one value per prompt are lists of one value, or tensors of one row.

    Args:
        arguments: of the call.
        row: number of the image.
        pictures: names of arguments that are one picture for all prompts, or one per prompt.
    """
    prompt = _prompt_number(arguments, row)
    return {
        name: _of_prompt(value, prompt, picture=name in pictures) if name in PER_PROMPT | pictures else value
        for name, value in arguments.items()
        if name not in ("generator", "latents", "num_images_per_prompt", "batch_size")
    }


def merged(calls: Sequence[Mapping[str, Any]], pictures: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The arguments of one call that makes the images of several calls of `single` with their noise."""
    many: dict[str, Any] = {"generator": [replayed(call["generator"]) for call in calls]}
    for name, value in calls[0].items():
        if name in PER_PROMPT | pictures | {"latents"} and isinstance(value, list):
            many[name] = [item for call in calls for item in call[name]]
        elif name in PER_PROMPT | pictures | {"latents"} and isinstance(value, Tensor):
            many[name] = torch.cat([call[name] for call in calls])
    if "batch_size" in calls[0]:
        many["batch_size"] = len(calls)
    return {**calls[0], **many}


def fresh(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of which a pipeline may change the lists: some put their captions into a template in place."""
    return {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}


def images_in(output: Any) -> Any:
    """The images in a call's output: a list of PIL images, an array or a tensor."""
    return output[0] if isinstance(output, tuple) else next(iter(dict(output).values()))


def replaced(output: Any, row: int, other: Any | None, place: int = 0, *, black: Tensor | None = None) -> Any:
    """A call's output in which one image, with all that belongs to it, is replaced by one of another call.

    Args:
        output: a tuple, or an output of diffusers, which is changed. The images come first, as a list of PIL images, an
            array or a tensor; the safety flags of Stable Diffusion may follow.
        row: number of the image.
        other: the output of another call. None makes the image black and leaves its safety flag, as diffusers' own
            safety checker does.
        place: number of the image in `other`.
        black: what a black image is, if the output has latents.
    """
    parts = dict(enumerate(output)) if isinstance(output, tuple) else dict(output)
    for number, (name, values) in enumerate(parts.items()):
        if values is None or (number > 0 and other is None):
            continue
        if other is not None:
            new = other[name][place]
        else:
            new = Image.new(values[row].mode, values[row].size) if isinstance(values, list) else 0
            new = new if black is None else black
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


def _of_prompt(value: Any, prompt: int, *, picture: bool) -> Any:
    """The value of one prompt in a list or a tensor of one; one value for all prompts is that value."""
    if isinstance(value, str | Image.Image):
        return [value]
    if picture and isinstance(value, Tensor) and value.dim() == 3:
        return value[None]
    one_each = isinstance(value, list | Tensor) and len(value) > 1
    return value[prompt : prompt + 1] if one_each else value


def _prompt_number(arguments: Mapping[str, Any], row: int) -> int:
    """The number of the prompt that image `row` of a call was made from."""
    return row // arguments.get("num_images_per_prompt", 1)
