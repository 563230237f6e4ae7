"""The tokenizers of a pipeline, for use in several threads, and how many tokens of a text are read."""

import copy
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptomnesia.pipelines.call import defaults_of

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
"""The names under which diffusers' pipelines have their tokenizers."""


@dataclass(frozen=True)
class Excess:
    """How long a text is, of which the end is cut off.

    Attributes:
        tokens: of the text.
        limit: tokens that are read.
    """

    tokens: int
    limit: int


def copied_tokenizers(pipe: Any, names: Iterable[str] = TOKENIZERS) -> dict[str, Any]:
    """Copies of the pipeline's tokenizers by name; a name that the pipeline lacks or leaves empty is left out.

    A tokenizer keeps padding and truncation in itself. A thread that uses a tokenizer while another one does so in
    another way breaks its batch, so whoever may not be alone works with a copy.
    """
    tokenizers = {name: getattr(pipe, name, None) for name in names}
    return {name: copy.deepcopy(tokenizer) for name, tokenizer in tokenizers.items() if tokenizer is not None}


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that were added to a tokenizer, by textual inversions for instance, with their numbers."""
    # some pipelines have a processor in this place, which holds the tokenizer
    read = getattr(getattr(tokenizer, "tokenizer", tokenizer), "get_added_vocab", dict)
    return dict(read())


def too_long(pipe: Any, texts: Sequence[str], longest: int | None = None) -> dict[str, Excess]:
    """The texts that no text encoder of a pipeline reads to their end; diffusers cuts them off.

    A text that is too long for CLIP is read as a whole if another encoder of the same pipeline reads more tokens.
    Tokens of a textual inversion count as the vectors that they stand for.

    Args:
        pipe: the pipeline.
        texts: prompts; each is looked at once.
        longest: `max_sequence_length` of the call; the pipeline's default when None. It limits all encoders but CLIP.
    """
    longest = defaults_of(pipe).get("max_sequence_length") if longest is None else longest
    readers = [
        (tokenizer, limit)
        # some pipelines have a processor in this place, which holds the tokenizer
        for name, copied in copied_tokenizers(pipe).items()
        for tokenizer in [getattr(copied, "tokenizer", copied)]
        if (limit := _limit(pipe, name, tokenizer, longest)) is not None
    ]
    for tokenizer, _ in readers:
        # the copy would warn of long texts
        tokenizer.model_max_length = sys.maxsize
    found = {}
    for text in dict.fromkeys(texts) if readers else ():
        lengths = [Excess(_count(pipe, tokenizer, text), limit) for tokenizer, limit in readers]
        if all(length.tokens > length.limit for length in lengths):
            found[text] = max(lengths, key=lambda length: length.limit)
    return found


def _limit(pipe: Any, name: str, tokenizer: Any, longest: int | None) -> int | None:
    """The tokens that the encoder behind a tokenizer is given, None if there is no such encoder."""
    encoder = getattr(pipe, name.replace("tokenizer", "text_encoder"), None)
    if encoder is None:
        return None
    limit = tokenizer.model_max_length
    # CLIP has as many positions as its tokenizer says; the others are given what the call says
    return limit if longest is None or "CLIP" in type(encoder).__name__ else longest


def _count(pipe: Any, tokenizer: Any, text: str) -> int:
    """The tokens of a text."""
    if hasattr(pipe, "maybe_convert_prompt"):
        text = pipe.maybe_convert_prompt(text, tokenizer)
    return len(tokenizer(text, truncation=False, verbose=False).input_ids)
