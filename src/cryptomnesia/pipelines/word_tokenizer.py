"""A tokenizer in CLIP's format that is made from a list of words."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

BOS, EOS = 0, 1
"""Numbers of the tokens that begin and end a caption."""


def tokenizer(words: Iterable[str], longest: int = 32) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format in which every one of `words` is a single token.

    Merges are found by pair frequency with ties broken by spelling, so the same words give the same
    tokenizer everywhere. A word that is not among them becomes several tokens.

    Args:
        words: that are single tokens.
        longest: tokens that a caption may have, with those that begin and end it.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # the first two are BOS and EOS
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))]
    while pairs := Counter(pair for parts in spelled for pair in pairwise(parts)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        vocabulary.append("".join(best))
        for parts in spelled:
            for at in range(len(parts) - 1, 0, -1):
                if (parts[at - 1 : at + 1]) == [*best]:
                    parts[at - 1 : at + 1] = ["".join(best)]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=merges,  # pyright: ignore[reportArgumentType]
        model_max_length=longest,
    )
