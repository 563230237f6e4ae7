"""What a pipeline reads of a caption: from the tokens to the conditioning, in a form that can be differentiated."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cryptomnesia.pipelines.call import defaults_of, silent
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.tokenizers import TOKENIZERS, copied_tokenizers
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.steering import SolverStep
from cryptomnesia.tracing.trajectory import Step
from cryptomnesia.tracing.watching import Steer, watch

Span = tuple[int, int]
"""Begin and end of a piece of a text."""


@dataclass(frozen=True)
class Embedded:
    """The tokens that an embedding layer of a text encoder looked up.

    Attributes:
        encoder: name of the text encoder.
        ids: numbers of the tokens, (B, L).
        values: their embeddings, (B, L, C), of which gradients can be computed.
    """

    encoder: str
    ids: Tensor
    values: Tensor

    @property
    def of_tokens(self) -> bool:
        """Whether these can be tokens of captions, and no positions, which are the same in every row."""
        ids = self.ids
        if ids.dim() != 2 or ids.is_floating_point():
            return False
        return not torch.equal(ids[0], torch.arange(ids.shape[1], device=ids.device))


def conditioning(pipe: Any, prompts: Sequence[str], sampling: Sampling) -> Inputs:
    """The conditioning that the pipeline computes from the captions; its call ends after one evaluation."""
    return _first_step(pipe, prompts, sampling, pipe, None).cond_inputs


def first_step(pipe: Any, prompts: Sequence[str], sampling: Sampling) -> Step:
    """The first evaluation of a call with these captions, with the conditioning of its branches; the call ends then."""
    return _first_step(pipe, prompts, sampling, pipe, None)


def differentiable(pipe: Any, prompt: str, sampling: Sampling) -> tuple[Inputs, list[Embedded]]:
    """The conditioning of one caption, and the embeddings of tokens from which the pipeline computes it."""
    # the pipelines of diffusers compute no gradients, by a decorator around their call
    call = inspect.unwrap(type(pipe).__call__)

    def cut(step: Step, _: SolverStep) -> Tensor:
        # some solvers compute with NumPy, which refuses tensors that gradients are computed of
        return step.guided.value.detach()

    with torch.enable_grad(), _without_gradients(pipe), _collected(pipe) as found:
        inputs = _first_step(pipe, [prompt], sampling, partial(call, pipe), cut).cond_inputs
    return inputs, found


def _first_step(
    pipe: Any, prompts: Sequence[str], sampling: Sampling, call: Callable[..., Any], steer: Steer | None
) -> Step:
    """The first evaluation of `call`, the pipeline's own with or without gradients."""

    def stop(_: int) -> None:
        pipe._interrupt = True

    # of few steps, a call that begins from a picture may have none left
    shortened = {"denoising_start", "denoising_end"} & sampling.options.keys() or "strength" in defaults_of(pipe)

    try:
        with silent(pipe), watch(pipe, keep=(0,), steer=steer, after_step=stop) as seen:
            call(
                **family_of(pipe).arguments(prompts, sampling if shortened else replace(sampling, steps=2)),
                generator=[torch.Generator().manual_seed(0) for _ in prompts],
                output_type="latent",
            )
    finally:
        pipe._interrupt = False
    return seen.trajectory.step(0)


@contextmanager
def _without_gradients(pipe: Any) -> Iterator[None]:
    """Keep the denoising networks, whose output nobody needs here, from storing what a gradient takes."""
    family = family_of(pipe)
    hooks = []
    for network in (family.module, *getattr(family, "beside", ())):
        hooks.append(network.register_forward_pre_hook(lambda *_: torch.set_grad_enabled(False) and None))
        hooks.append(network.register_forward_hook(lambda *_: torch.set_grad_enabled(True) and None, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _collected(pipe: Any) -> Iterator[list[Embedded]]:
    """Collect what the embedding layers of the text encoders look up during the block."""
    found: list[Embedded] = []
    hooks = []
    for name in TOKENIZERS:
        encoder = name.replace("tokenizer", "text_encoder")

        def keep(_: nn.Module, arguments: tuple[Any, ...], output: Tensor, encoder: str = encoder) -> Tensor:
            output = output.detach().requires_grad_()
            found.append(Embedded(encoder, arguments[0], output))
            return output

        network = getattr(pipe, encoder, None)
        layers = network.modules() if isinstance(network, nn.Module) else ()
        hooks += [layer.register_forward_hook(keep) for layer in layers if isinstance(layer, nn.Embedding)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def token_spans(pipe: Any, embedded: Embedded, text: str) -> list[Span] | None:
    """Where in a caption the tokens stand that an embedding layer looked up.

    Some pipelines write captions in lower case before they read them.

    Args:
        pipe: the pipeline.
        embedded: of one caption.
        text: the caption.

    Returns:
        Begin and end of every token, (0, 0) for one that is no part of the caption; None where the tokens of the
        caption are not found, because the layer embeds positions for instance, or the pipeline rewrites captions.
    """
    name = embedded.encoder.replace("text_encoder", "tokenizer")
    copied = copied_tokenizers(pipe, [name]).get(name)
    # some pipelines have a processor in this place, which holds the tokenizer
    tokenizer = getattr(copied, "tokenizer", copied)
    if tokenizer is None or not getattr(tokenizer, "is_fast", False) or not embedded.of_tokens:
        return None
    ids = embedded.ids[0].tolist()
    lower = text.lower()
    for written in (text, lower) if len(lower) == len(text) else (text,):
        read = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        wanted, spans = read["input_ids"], [tuple(span) for span in read["offset_mapping"]]
        for start in range(len(ids)):
            count = len(wanted)
            if start <= 1:
                # the end of a long caption is cut off, before a token that ends every caption
                count = min(count, len(ids) - start - 1)
            if count > 0 and ids[start : start + count] == wanted[:count]:
                return [(0, 0)] * start + spans[:count] + [(0, 0)] * (len(ids) - start - count)
    return None
