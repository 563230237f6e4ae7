"""The captions of a call, in words and as embeddings, and how to change them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.bright_ending import end_positions
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.tracing.trajectory import Step
from cryptomnesia.words import without, words

PROMPTS = ("prompt", "prompt_2", "prompt_3", "prompt_4")
"""Names of the arguments that are captions in words."""

Path = tuple[str, ...]
"""Names that lead to a tensor in a conditioning."""


def texts_of(call: Mapping[str, Any]) -> dict[str, str]:
    """The captions of a call of one image that were given in words."""
    return {name: call[name][0] for name in PROMPTS if call.get(name) is not None}


def worded(call: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A call of one image with other captions."""
    return {**call, **{name: [change(text)] for name, text in texts_of(call).items()}}


def lacking(call: Mapping[str, Any], dropped: Sequence[str]) -> dict[str, Any]:
    """A call of one image whose captions lack the dropped words."""
    return worded(call, lambda text: without(text, dropped))


def candidates(text: str, dropped: Sequence[str]) -> list[str]:
    """The different words of `text` that could be dropped next, in their order; none if only one is left.

    A word in capitals is the same word: text encoders hardly distinguish them.
    """
    lost = {word.casefold() for word in dropped}
    different: dict[str, str] = {}
    for word in words(text):
        different.setdefault(word.casefold(), word)
    left = [word for key, word in different.items() if key not in lost]
    return left if len(left) > 1 else []


def embeddings(inputs: Inputs, other: Inputs) -> dict[Path, Tensor]:
    """The embeddings of captions in a conditioning: the numbers that are others under another caption.

    Args:
        inputs: the conditioning, (B, …) in every tensor.
        other: that of another caption, of the unconditional branch for instance.

    Raises:
        UsageError: if there are none, because the network takes captions in another form.
    """
    found = dict(_differing(inputs, other, ()))
    if not found:
        raise UsageError("the embeddings of the captions were not found in what the network is given; use `rephrasing`")
    return found


def _differing(inputs: Any, other: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(inputs, Mapping):
        for name, value in inputs.items():
            if not name.startswith("_") and "mask" not in name and isinstance(other, Mapping) and name in other:
                yield from _differing(value, other[name], (*path, name))
    elif isinstance(inputs, Tensor) and inputs.is_floating_point() and isinstance(other, Tensor):
        if inputs.shape[1:] != other.shape[1:] or not torch.equal(inputs, other.expand_as(inputs)):
            yield path, inputs


def embedded(inputs: Inputs, tensors: Mapping[Path, Tensor]) -> Inputs:
    """A conditioning with other tensors in some places."""
    new = dict(inputs)
    for path, tensor in tensors.items():
        name, *rest = path
        new[name] = embedded(new[name], {tuple(rest): tensor}) if rest else tensor
    return new


def of_captions(step: Step) -> dict[Path, Tensor]:
    """The embeddings of the captions at an evaluation with both branches."""
    assert step.uncond_inputs is not None
    return embeddings(step.cond_inputs, step.uncond_inputs)


def caption_ends(pipe: Any, calls: Sequence[Mapping[str, Any]]) -> tuple[Tensor, dict[int, str]]:
    """The number of the end token of every caption, and why some calls have none that is known.

    Returns:
        Numbers (n,) of the calls that are left, and the reasons by the numbers of the others.
    """
    texts = [texts_of(call) for call in calls]
    unknown = {row: "no caption in words" for row, given in enumerate(texts) if "prompt" not in given}
    unknown |= {row: "several captions" for row, given in enumerate(texts) if len(set(given.values())) > 1}
    known = [given["prompt"] for row, given in enumerate(texts) if row not in unknown]
    return end_positions(pipe, known) if known else torch.zeros(0, dtype=torch.long), unknown


def draws_for(call: Mapping[str, Any], purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers for one image: the same for the same noise, and others than its noise."""
    digest = hashlib.sha256(call["generator"].get_state().numpy().tobytes() + purpose.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
