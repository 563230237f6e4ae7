"""Another padding token, and no end token (arXiv:2605.02908).

Where the tokenizer pads with the end token, as that of Stable Diffusion 1 does, most tokens that the picture attends to
are end tokens, and they carry the summary of a memorized caption. So captions are padded with "!" instead, and the
embedding of the end token is set to zero. Which tokens of the unconditional branch change the paper does not say; here
its padding changes, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError
from cryptomnesia.localizers.bright_ending import check_tokenizer
from cryptomnesia.mitigations.base import Correction, Flagged, Prepared, Preparing, Studio
from cryptomnesia.mitigations.captions import Path, caption_ends, embedded
from cryptomnesia.pipelines.inputs import Inputs
from cryptomnesia.pipelines.setup import Requirement
from cryptomnesia.tracing.watching import check_conditioned

if TYPE_CHECKING:
    from cryptomnesia.pipelines.setup import Setup


@dataclass(frozen=True)
class PadTokens(Preparing):
    """What captions are padded with.

    Attributes:
        token: one token of the tokenizer; by default "!", or "," where the tokenizer does not know it.
    """

    token: str | None = None

    name = "pad-tokens"  # type: ignore[override]
    summary = "The same seed again, with another padding token and without the end token."
    source = "arXiv:2605.02908"
    use_when = "The model is Stable Diffusion 1, or another one whose tokenizer pads with the end token."
    avoid_when = "The tokenizer pads with another token, or single words bring the memory back."

    @property
    def requires(self) -> frozenset[Requirement]:
        """Captions in words, which are changed."""
        return frozenset({"captions"})

    def check(self, setup: "Setup") -> None:
        """Refuse pipelines whose tokenizer does not pad with the end token, or does not know `token`.

        Raises:
            UsageError: naming the tokenizer.
        """
        pipe = setup.pipe
        check_conditioned(pipe)
        check_tokenizer(pipe)
        tokenizer = pipe.tokenizer
        if tokenizer.pad_token_id != tokenizer.eos_token_id:
            raise UsageError(
                f"{self.name} replaces end tokens in the padding, and a {type(pipe).__name__} pads with "
                f"{tokenizer.pad_token!r}; use another mitigation"
            )
        if _known(tokenizer, self.token) is None:
            raise UsageError(
                f"the tokenizer of a {type(pipe).__name__} has no token {self.token or '!'!r}; give one that it has, "
                "PadTokens(token=…)"
            )

    def cost(self, setup: "Setup") -> float:
        """One more run, and its first evaluation."""
        return setup.sampling.steps + 1.0

    def prepare(self, flagged: Sequence[Flagged], studio: Studio) -> Prepared:
        """Find the end token of every caption."""
        calls = [image.call for image in flagged]
        ends, hopeless = caption_ends(studio.setup.pipe, calls)
        correction = Padded(self.token, ends)
        return Prepared(calls, correction, ["with other padding"] * len(calls), hopeless=hopeless)


def _known(tokenizer: Any, token: str | None) -> str | None:
    """The token as the vocabulary has it, perhaps with the mark for the end of a word; None if it has neither."""
    vocabulary = tokenizer.get_vocab()
    wanted = ("!", ",") if token is None else (token,)
    return next((form for one in wanted for form in (one, f"{one}</w>") if form in vocabulary), None)


@dataclass
class Padded(Correction):
    """Pads captions with another token, and sets the embeddings of end tokens to zero.

    Attributes:
        token: of the padding.
        ends: number of the end token of every caption, (B,).
    """

    token: str | None
    ends: Tensor

    @contextmanager
    def around(self, pipe: Any) -> Iterator[None]:
        """Let the first tokenizer pad with the token."""
        tokenizer = pipe.tokenizer
        before = tokenizer.pad_token
        tokenizer.pad_token = _known(tokenizer, self.token)
        try:
            yield
        finally:
            tokenizer.pad_token = before

    def condition(self, index: int, inputs: Inputs) -> Inputs:
        """The conditioning without the end tokens."""
        found: dict[Path, Tensor] = {}
        for name, values in inputs.items():
            if isinstance(values, Tensor) and values.is_floating_point() and values.dim() == 3:
                values = values.clone()
                values[torch.arange(len(values)), self.ends.to(values.device)] = 0
                found[(name,)] = values
        return embedded(inputs, found)
