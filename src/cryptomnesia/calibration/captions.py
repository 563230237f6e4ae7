"""What a calibration keeps of its reference prompts: hashes of the captions and of their words, and no text.

The hashes tell whether another prompt is one of the captions, how many words a caption has, and which words of a prompt
no caption has. They keep no secret: who guesses a word can check the guess.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cryptomnesia.pipelines.families.base import Family

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Chinese characters, which are written without spaces between words."""

_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+")


@dataclass(frozen=True)
class Captions:
    """Hashes of captions and of their words.

    Two captions have the same hash if they have the same words in the same order, whatever their case and punctuation.

    Attributes:
        texts: hash of every caption, (n,) int64.
        lengths: number of words of every caption, (n,) int64.
        words: hashes of the words of all captions, one caption after the other and sorted within each, (m,) int64.
    """

    texts: Tensor
    lengths: Tensor
    words: Tensor

    @classmethod
    def of(cls, captions: Sequence[str]) -> "Captions":
        """The hashes of captions and their words."""
        split = [words_of(caption) for caption in captions]
        hashed = [sorted(map(_hash, words)) for words in split]
        return cls(
            torch.tensor([text_hash(caption) for caption in captions], dtype=torch.int64),
            torch.tensor([len(words) for words in split], dtype=torch.int64),
            torch.tensor([word for words in hashed for word in words], dtype=torch.int64),
        )

    @classmethod
    def read_by(cls, family: Family, captions: Sequence[str]) -> "Captions":
        """The hashes of captions as a family's models read them: a model without captions reads no words."""
        return cls.of(captions if family.conditional else [""] * len(captions))

    def __len__(self) -> int:
        """The number of captions."""
        return len(self.texts)

    def rows(self, rows: Sequence[int]) -> "Captions":
        """The captions with these numbers."""
        parts = self.words.split(self.lengths.tolist())
        chosen = [parts[row] for row in rows]
        return Captions(self.texts[list(rows)], self.lengths[list(rows)], torch.cat([self.words[:0], *chosen]))

    @property
    def duplicates(self) -> list[int]:
        """The numbers of captions that have the same words in the same order as an earlier one."""
        seen: set[int] = set()
        found = []
        for number, (text, length) in enumerate(zip(self.texts.tolist(), self.lengths.tolist(), strict=True)):
            if length and text in seen:
                found.append(number)
            seen.add(text)
        return found

    def among(self, other: "Captions") -> np.ndarray:
        """Which of these captions are among the others, (n,) bool; False for a caption without words."""
        return np.isin(self.texts.numpy(), other.texts.numpy()) & (self.lengths > 0).numpy()

    def foreign(self, other: "Captions | None" = None) -> np.ndarray:
        """The share of the words of every caption that no other caption has, (n,).

        Captions without words are left out.

        Args:
            other: the captions to compare with; if None, every caption is compared with all others of these.
        """
        # how many captions have a word; a word that is there twice in one caption counts once
        source = self if other is None else other
        owners = np.repeat(np.arange(len(source)), source.lengths.numpy())
        pairs = np.unique(np.stack([owners, source.words.numpy()]), axis=1)
        known, counts = np.unique(pairs[1], return_counts=True)
        common = known[counts > (1 if other is None else 0)]
        unknown = ~np.isin(self.words.numpy(), common)
        rows = np.repeat(np.arange(len(self)), self.lengths.numpy())
        lengths = self.lengths.numpy()
        sums = np.bincount(rows, weights=unknown, minlength=len(self))
        return sums[lengths > 0] / lengths[lengths > 0]

    @cached_property
    def worded(self) -> bool:
        """Whether any caption has words; those of a model without captions have none."""
        return bool(len(self.words))


def words_of(caption: str) -> list[str]:
    """The words of a caption in lower case; a Chinese character or a kana counts as a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", caption).casefold())


def text_hash(caption: str) -> int:
    """The hash of a caption: that of its words, or of the text itself if there are none."""
    return _hash(" ".join(words_of(caption)) or caption)


def _hash(text: str) -> int:
    """The first eight bytes of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big", signed=True)
