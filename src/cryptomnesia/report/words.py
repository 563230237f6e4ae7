"""What words bring, in a terminal. Importing this module loads nothing heavy."""

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cryptomnesia.report.console import plain, print_wide
from cryptomnesia.report.rows import Judged
from cryptomnesia.words import spans

if TYPE_CHECKING:
    from cryptomnesia.attribution import Word

RED, BOLD = 0.1, 0.3
"""Share of the guidance that is lost without a word, from which the word is printed in red, and in bold red."""

MOST = 5
"""Words listed for an image."""


def print_words(rows: Sequence[Judged]) -> None:
    """The prompt of every image whose words were compared, with the words that matter in red, and their figures."""
    for row in rows:
        if row.words:
            print_wide(Text.assemble(f"\nseed {row.seed}: ", _coloured(row.verdict.prompt or "", row.words)))
            print_wide(_table(row.words))
            if other := disagreement(row.words):
                print_wide(plain(f"the gradient names another word: {other}"))


def disagreement(words: "Sequence[Word]") -> str:
    """The word that the gradient names, if leaving out names another one; else an empty text."""
    known = [word for word in words if word.gradient is not None]
    leading = _sorted(words)[0]
    if not known or isnan(leading.left_out):
        return ""
    steepest = max(known, key=lambda word: word.gradient or 0.0)
    return "" if steepest == leading else steepest.text


def _sorted(words: "Sequence[Word]") -> "list[Word]":
    """The word without which most is lost first, words without a figure last."""
    return sorted(words, key=lambda word: (isnan(word.left_out), -word.left_out))


def _coloured(prompt: str, words: "Sequence[Word]") -> Text:
    """A prompt in which a word is the redder, the more is lost without it."""
    found = {word.text.casefold(): word for word in words}
    text = plain(prompt)
    for start, end in spans(prompt):
        word = found.get(prompt[start:end].casefold())
        if word is not None and word.left_out >= RED:
            text.stylize("bold red" if word.left_out >= BOLD else "red", start, end)
    return text


def _table(words: "Sequence[Word]") -> Table:
    """The leading words with their figures."""
    table = Table("word", "lost without it", "gradient")
    for column in table.columns[1:]:
        column.justify = "right"
    for word in _sorted(words)[:MOST]:
        shares = (None if isnan(word.left_out) else word.left_out, word.gradient)
        table.add_row(plain(word.text), *("–" if share is None else f"{share:.0%}" for share in shares))
    return table
