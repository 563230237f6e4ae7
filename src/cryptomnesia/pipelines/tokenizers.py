"""The tokenizers of a pipeline, for use in several threads."""

import copy
from collections.abc import Iterable
from typing import Any

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
"""The names under which diffusers' pipelines have their tokenizers."""


def copied_tokenizers(pipe: Any, names: Iterable[str] = TOKENIZERS) -> dict[str, Any]:
    """Copies of the pipeline's tokenizers by name; a name that the pipeline lacks or leaves empty is left out.

    A tokenizer keeps padding and truncation in itself. A thread that uses a tokenizer while another one does so in
    another way breaks its batch, so whoever may not be alone works with a copy.
    """
    tokenizers = {name: getattr(pipe, name, None) for name in names}
    return {name: copy.deepcopy(tokenizer) for name, tokenizer in tokenizers.items() if tokenizer is not None}
