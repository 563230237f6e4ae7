"""More attention to the start token and none to the padding (Ren et al., ECCV 2024, arXiv:2403.11052).

Under a memorized caption the cross-attention lies on the end token and the padding, the tokens behind the words. In
every cross-attention layer the logits of the start token are multiplied by 1.25, and the padding behind the end token
is masked, in the conditional branch alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.bright_ending import check_tokenizer, cross_attention
from cryptomnesia.mitigations.base import Correction, Flagged, Prepared, Preparing, Studio
from cryptomnesia.mitigations.captions import caption_ends
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.setup import Requirement

if TYPE_CHECKING:
    from cryptomnesia.detectors.base import Detector
    from cryptomnesia.pipelines.setup import Setup

_MASKED = -10_000.0
"""What diffusers adds to the logits of a masked token."""


@dataclass(frozen=True)
class AttentionReweighting(Preparing):
    """How attention is changed.

    Attributes:
        start: factor of the start token's logits.
    """

    start: float = 1.25

    name = "attention-reweighting"  # type: ignore[override]
    summary = "The same seed again, with more attention to the start token and none to the padding."
    source = "arXiv:2403.11052"
    use_when = "You want a baseline on Stable Diffusion 1 or 2, where it was published."
    avoid_when = "The network is a transformer, or single words bring the memory back."

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, to know where they end."""
        return frozenset({"captions"})

    def check(self, setup: "Setup") -> None:
        """Refuse networks without cross-attention on their way down, and tokenizers that do not pad at the end.

        Raises:
            UsageError: naming them.
        """
        cross_attention(setup.family.module, 0)
        check_tokenizer(setup.pipe)
        if not self.start > 0:
            raise UsageError(f"got start={self.start} for {self.name}; give a factor above 0")

    def blinds(self, detector: "Detector") -> bool:
        """True of detectors that read the attention, which is changed."""
        return bool(detector.reads & {"bright-ending", "attention-entropy", "attention-entropy-late"})

    def cost(self, setup: "Setup") -> float:
        """One more run of the pipeline, in evaluations."""
        return float(setup.sampling.steps)

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Find the padding of every caption."""
        calls = [image.call for image in flagged]
        ends, hopeless = caption_ends(studio.setup.pipe, calls)
        correction = Reweighted(self.start, ends)
        return Prepared(calls, correction, ["with other attention"] * len(calls), hopeless=hopeless)


@dataclass
class Reweighted(Correction):
    """Changes the cross-attention of a UNet.

    Attributes:
        start: factor of the start token's logits.
        ends: number of the end token of every caption, (B,).
    """

    start: float
    ends: Tensor
    _thread: int = field(default=0, init=False)

    @contextmanager
    def around(self, pipe: Any) -> Iterator[None]:
        """Change the keys of the start token, and the masks, in every cross-attention layer."""
        network = family_of(pipe).module
        # pipelines in other threads may share the network
        self._thread = get_ident()
        layers: list[Any] = [layer for layer in network.modules() if getattr(layer, "is_cross_attention", False)]
        with ExitStack() as hooks:
            for layer in layers:
                hooks.callback(layer.register_forward_pre_hook(self._masked, with_kwargs=True).remove)
                hooks.callback(layer.to_k.register_forward_hook(self._scaled).remove)
            yield

    def _scaled(self, _layer: nn.Module, _args: Any, keys: Tensor) -> Tensor | None:
        """Keys in which that of the start token is longer: its logits grow by the same factor."""
        if get_ident() != self._thread:
            return None
        keys = keys.clone()
        # the conditional branch is the second half of a batch with both
        keys[-len(self.ends) :, 0] *= self.start
        return keys

    def _masked(self, _layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The arguments of a layer with a mask for the padding."""
        if get_ident() != self._thread:
            return None
        captions = kwargs["encoder_hidden_states"]
        behind = torch.arange(captions.shape[1])[None] > self.ends[:, None]
        mask = torch.zeros(captions.shape[:2]).to(captions)
        mask[-len(self.ends) :] = _MASKED * behind.to(captions)
        given = kwargs.get("attention_mask")
        return args, {**kwargs, "attention_mask": mask[:, None] if given is None else given + mask[:, None]}
