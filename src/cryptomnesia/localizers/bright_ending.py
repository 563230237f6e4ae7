"""Bright Ending (Chen et al., ICLR 2025): where the picture attends to the caption's end token.

The end token stands for the whole caption. A memorized generation attends to it at the places that it reproduces. The
map is the cross-attention probability of the end token at the last step, averaged over the heads and layers of the
first down block that attends to the caption, which has the highest resolution.

Queries and keys are read from the projections of the stock attention modules in one more evaluation of the conditional
branch. No attention processor is replaced, and the generation is not changed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.images import upsampled
from cryptomnesia.localizers.base import Localizer, Map, Watched, finite, wide
from cryptomnesia.localizers.jacobian.process import eagerly
from cryptomnesia.pipelines.denoiser import Denoiser
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.pipelines.tokenizers import copied_tokenizers
from cryptomnesia.tracing.trajectory import Place, Step

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class BrightEnding(Localizer):
    """Attention to the end token at evaluation `step`, in [0, 1]."""

    step: Place = -1

    name = "bright-ending"  # type: ignore[override]
    summary = "How much the picture attends to the caption's end token at the last step, at every place."
    source = "Chen et al., ICLR 2025"
    use_when = "You compare with it on Stable Diffusion 1 or 2, where it was published."
    avoid_when = (
        "The network is a transformer, which has no cross-attention on its way down, or the caption's end is not known "
        "(no captions; as a detector during a run)."
    )

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, to know where they end."""
        return frozenset({"captions"})

    def check(self, setup: "Setup") -> None:
        """Refuse a network without cross-attention on its way down, and a tokenizer that does not pad at the end.

        Raises:
            UsageError: naming the network, or the tokenizer.
        """
        super().check(setup)
        cross_attention(setup.family.module)
        check_tokenizer(setup.pipe)

    def cost(self, setup: "Setup") -> float:
        """One evaluation of the conditional branch, half of one of both."""
        return 0.5 if setup.guided else 1.0

    @torch.no_grad()
    def map(self, watched: Watched) -> Map:
        """The mean probability at every place of every image, (B, h, w), upsampled if the block has a lower resolution.

        Raises:
            UsageError: for a network that is no UNet with cross-attention, or without captions and pipeline.
        """
        step = watched.trajectory.step(self.step)
        if watched.prompts is None or watched.pipe is None:
            raise UsageError("attention maps need the captions and the pipeline; give `Watched` both")
        ends = end_positions(watched.pipe, watched.prompts)
        layers = cross_attention(getattr(watched.denoiser, "module", None))
        seen = attention(watched.denoiser, step, layers)
        maps = torch.stack([found[torch.arange(len(ends)), :, ends] for found in seen]).mean(dim=0)
        height, width = step.cond.x.shape[-2:]
        down = round((height * width / maps.shape[1]) ** 0.5)
        maps = maps.unflatten(1, (-(-height // down), -(-width // down)))
        return Map(finite(maps if down == 1 else upsampled(maps, height, width)))


def cross_attention(network: Any, block: int = 0) -> list[Any]:
    """The cross-attention modules of one of the down blocks that have any.

    Args:
        network: a UNet.
        block: which of these blocks, counted from 0; the last one if there are fewer.

    Raises:
        UsageError: if there are none.
    """
    found = []
    for down in getattr(network, "down_blocks", ()):
        blocks = [
            inner for outer in getattr(down, "attentions", ()) for inner in getattr(outer, "transformer_blocks", ())
        ]
        layers = [layer for inner in blocks for layer in (inner.attn1, inner.attn2) if layer.is_cross_attention]
        if layers:
            found.append(layers)
    if not found:
        raise UsageError(
            f"a {type(network).__name__} has no cross-attention on its way down; use a method that needs none, "
            "curvature-difference for instance"
        )
    return found[min(block, len(found) - 1)]


def attention(denoiser: Denoiser, step: Step, layers: Sequence[Any]) -> list[Tensor]:
    """With which probability every place attends to every token, averaged over heads, at an evaluation of a run.

    The conditional branch is evaluated once more. No attention processor is replaced.

    Args:
        denoiser: the network of the run.
        step: the evaluation.
        layers: cross-attention modules of the network.

    Returns:
        For every layer (B, places, tokens).
    """
    seen: dict[Any, dict[str, Tensor]] = defaultdict(dict)
    hooks = [
        getattr(layer, part).register_forward_hook(
            lambda _module, _args, output, layer=layer, part=part: seen[layer].update({part: output})
        )
        for layer in layers
        for part in ("to_q", "to_k")
    ]
    try:
        # compiled code would not call the hooks
        with eagerly():
            denoiser(step.cond.x, step.level, step.cond_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [_probabilities(layer, **seen[layer]) for layer in layers]


def check_tokenizer(pipe: Any) -> None:
    """Refuse a pipeline whose captions do not end where `end_positions` looks.

    Raises:
        UsageError: naming the tokenizer.
    """
    tokenizer = getattr(pipe, "tokenizer", None)
    side = getattr(tokenizer, "padding_side", None)
    if side != "right":
        kind = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__}, which pads on the {side}"
        raise UsageError(
            f"a {type(pipe).__name__} has {kind}, so it is not known where a caption ends; use a method that does not "
            "need that, curvature-difference for instance"
        )


def end_positions(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """The number of the end token among the tokens of every prompt, from 0, (B,) int."""
    tokenizer = copied_tokenizers(pipe, ["tokenizer"])["tokenizer"]
    # a textual inversion of several vectors stands for as many tokens
    convert = getattr(pipe, "maybe_convert_prompt", lambda prompt, _: prompt)
    read = [tokenizer(convert(prompt, tokenizer), truncation=True).input_ids for prompt in prompts]
    return torch.tensor([len(tokens) - 1 for tokens in read])


def _probabilities(layer: Any, to_q: Tensor, to_k: Tensor) -> Tensor:
    """The probability with which every place attends to every token, averaged over heads, (B, places, tokens)."""
    query, key = (wide(part).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (to_q, to_k))
    return (query @ key.transpose(-1, -2) * layer.scale).softmax(dim=-1).mean(dim=1)
