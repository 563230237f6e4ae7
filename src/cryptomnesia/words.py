"""The words of a caption, and a caption without some of its words.

Nothing is changed but the places where words are left out: there one separator takes the place of several, and quotes
and brackets around nothing are removed.
"""

import unicodedata
from collections.abc import Collection, Sequence

UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # iteration marks and zero of Han
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # Katakana at half width
    (0x20000, 0x3FFFF),
)
"""Scripts that are written without spaces between words, as ranges of code points."""

PAIRS = dict(zip("([{“„‘«（［【〔「『《〈", (*")]}”", "“”", *"’»）］】〕」』》〉"), strict=True))
"""Opening bracket or quote → those that close it."""

PAUSES = frozenset(",;:、，；：،؛・·")
STOPS = frozenset(".!?…。！？؟।॥۔")
DASHES = frozenset("-–—|•")
"""Characters that separate like a comma where spaces surround them."""

_JOINER = "\u200d"
"""Joins emoji to one."""

_INSIDE = frozenset("'’-‑")
"""Characters that may stand between two letters of one word."""


def words(text: str) -> list[str]:
    """The words of a text in their order.

    A word is a run of letters and digits, with apostrophes and hyphens inside, or a number such as 3.5. In scripts that
    are written without spaces every character is a word, and so is every emoji.

    Example:
        >>> words("The cat's 3.5-inch red-haired toy, 赤い猫 🐱")
        ['The', "cat's", '3.5-inch', 'red-haired', 'toy', '赤', 'い', '猫', '🐱']
    """
    return [text[start:end] for start, end in spans(text)]


def without(text: str, dropped: Collection[str]) -> str:
    """A text without every occurrence of the dropped words, in capitals or not.

    Example:
        >>> without("A red cat, sitting (quietly), podonna", ["podonna", "cat"])
        'A red, sitting (quietly)'
    """
    lost = {word.casefold() for word in dropped}
    places = spans(text)
    gone = [text[start:end].casefold() in lost for start, end in places]
    roles = _roles(text, places, gone)
    parts: list[str] = []
    kept: tuple[int, int] | None = None
    tokens: list[tuple[str, str]] = []
    end = 0
    for (start, stop), drop in zip(places, gone, strict=True):
        tokens += [(text[at], roles[at]) for at in range(end, start)]
        end = stop
        if drop:
            tokens.append(("", "dropped"))
            continue
        before = "" if kept is None else text[slice(*kept)]
        parts += [_separator(tokens, before, text[start:stop]), text[start:stop]]
        kept, tokens = (start, stop), []
    tokens += [(text[at], roles[at]) for at in range(end, len(text))]
    parts.append(_separator(tokens, "" if kept is None else text[slice(*kept)], ""))
    return "".join(parts)


def _kind(char: str) -> str:
    """What a character is for words: `mark`, `sign` of a script without spaces, `letter`, `emoji` or `other`."""
    if unicodedata.category(char)[0] == "M" or char in "\u200c\u200d":
        return "mark"
    if char.isalnum() or char == "_":
        return "sign" if any(low <= ord(char) <= high for low, high in UNSPACED) else "letter"
    # the symbols below, ° and © for instance, belong to the words beside them
    return "emoji" if unicodedata.category(char) == "So" and ord(char) >= 0x2190 else "other"


def spans(text: str) -> list[tuple[int, int]]:
    """Begin and end of every word of a text."""
    kinds = [*map(_kind, text), "other"]
    found = []
    start = 0
    while start < len(text):
        kind, end = kinds[start], start + 1
        if kind in ("other", "mark"):
            start = end
            continue
        while end < len(text):
            if kinds[end] == "mark":
                joins = text[end] == _JOINER and kind == kinds[end + 1] == "emoji"
                end += 2 if joins else 1
            elif (kind == "letter" and _goes_on(text, kinds, end)) or (kind == "emoji" and _varies(text, start, end)):
                end += 1
            else:
                break
        found.append((start, end))
        start = end
    return found


def _goes_on(text: str, kinds: Sequence[str], at: int) -> bool:
    """Whether a word of letters goes on with the character at `at`."""
    if kinds[at] == "letter":
        return True
    if kinds[at + 1] != "letter":
        return False
    return text[at] in _INSIDE or (text[at] in ".,:" and text[at - 1].isdecimal() and text[at + 1].isdecimal())


def _varies(text: str, start: int, at: int) -> bool:
    """Whether the character at `at` belongs to the emoji that begins at `start`: a skin tone, a tag, half of a flag."""
    flag = all(0x1F1E6 <= ord(char) <= 0x1F1FF for char in text[start : at + 1]) and at == start + 1
    return flag or 0x1F3FB <= ord(text[at]) <= 0x1F3FF or 0xE0020 <= ord(text[at]) <= 0xE007F


def _roles(text: str, places: Sequence[tuple[int, int]], gone: Sequence[bool]) -> list[str]:
    """What every character outside words does.

    Returns:
        For every character `space`, `pause`, `stop`, `open`, `close`, `removed` for brackets and quotes around dropped
        words only, or `other`, which words have as well.
    """
    roles = ["other"] * len(text)
    inside = [False] * (len(text) + 1)
    for start, end in places:
        inside[start:end] = [True] * (end - start)
    opened: list[int] = []
    for at, char in enumerate(text):
        if inside[at]:
            continue
        if char.isspace():
            roles[at] = "space"
        elif char in PAUSES:
            roles[at] = "pause"
        elif char in STOPS:
            roles[at] = "stop"
        elif (first := _opener(text, inside, opened, at)) is not None:
            del opened[opened.index(first) :]
            enclosed = [drop for (start, _), drop in zip(places, gone, strict=True) if first < start < at]
            if enclosed:
                roles[first], roles[at] = ("removed", "removed") if all(enclosed) else ("open", "close")
        elif char in PAIRS or char == '"' or (char == "'" and inside[at + 1] and not (at and inside[at - 1])):
            opened.append(at)
    return roles


def _opener(text: str, inside: Sequence[bool], opened: Sequence[int], at: int) -> int | None:
    """The bracket or quote among the `opened` that the character at `at` closes, None if it closes none."""
    for first in reversed(opened):
        straight = text[first] in "\"'" and text[first] == text[at]
        if straight and (text[at] == '"' or not text[at - 1].isspace()):
            return first
        if text[at] in PAIRS.get(text[first], ""):
            return first
    return None


def _separator(tokens: list[tuple[str, str]], before: str, after: str) -> str:
    """What stands between two kept words, or between one and an end of the text.

    Args:
        tokens: the characters between them with their roles; a dropped word has no character and the role `dropped`.
        before: the word before them, "" at the beginning.
        after: the word after them, "" at the end.
    """
    if all(role != "dropped" for _, role in tokens):
        return "".join(char for char, _ in tokens)
    joint = _joint(tokens) if before and after else ""
    tokens = [token for token in tokens if token[1] != "removed"]
    tail, tokens = _tail(tokens) if before else ("", tokens)
    # the same from the other end: what is written directly before a word, $ for instance, stays with it
    reversed_head, backwards = _tail(tokens[::-1]) if after else ("", tokens[::-1])
    head, tokens = reversed_head[::-1], backwards[::-1]

    closers = "".join(char for char, role in tokens if role == "close")
    openers = "".join(char for char, role in tokens if role == "open")
    last = max((at for at, (_, role) in enumerate(tokens) if role == "close"), default=-1)
    inner, outer = tokens[: last + 1], tokens[last + 1 :]
    first = next((at for at, (_, role) in enumerate(outer) if role == "open"), len(outer))
    inner_mark = _mark(inner, roles=("stop",)) if closers else ""
    mark = _mark(outer[:first], roles=("stop", "pause") if after else ("stop",)) if before else ""
    space = _space(tokens) if before and after else ""
    if mark in DASHES:
        mark = space + mark
    found = f"{tail}{inner_mark}{closers}{mark}{space}{openers}{head}"
    if not found:
        found = joint
    if before and after and words(before + found + after) != [before, after]:
        found = f"{found} " if words(f"{before}{found} {after}") == [before, after] else " "
    return found


def _joint(tokens: Sequence[tuple[str, str]]) -> str:
    """What joins words without spaces, the slash of "cat/dog" for instance, if that stands around all dropped words."""
    groups = [""]
    for char, role in tokens:
        if role == "dropped":
            groups.append("")
        elif role != "other":
            return ""
        else:
            groups[-1] += char
    return groups[0] if all(groups) else ""


def _tail(tokens: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """The symbols that are written directly behind a word, % for instance, and the tokens after them."""
    count = next((at for at, (_, role) in enumerate(tokens) if role != "other"), len(tokens))
    symbols = "".join(char for char, _ in tokens[:count])
    joining = count == len(tokens) or tokens[count][1] == "dropped"
    if joining or set(symbols) <= {"–", "—"}:
        return "", tokens
    return symbols, tokens[count:]


def _mark(tokens: Sequence[tuple[str, str]], *, roles: Sequence[str]) -> str:
    """The punctuation that stays of several: the first of the first role that is there, "" for none."""
    plain = []
    for at, (char, role) in enumerate(tokens):
        spaced = 0 < at < len(tokens) - 1 and tokens[at - 1][1] == tokens[at + 1][1] == "space"
        plain.append((char, "pause" if role == "other" and char in DASHES and spaced else role))
    for wanted in roles:
        start = next((at for at, (_, role) in enumerate(plain) if role == wanted), None)
        if start is not None:
            end = next((at for at in range(start, len(plain)) if plain[at][1] != wanted), len(plain))
            return "".join(char for char, _ in plain[start:end])
    return ""


def _space(tokens: Sequence[tuple[str, str]]) -> str:
    """The shortest of several runs of white space, or the first that breaks the line."""
    runs = [""]
    for char, role in tokens:
        if role == "space":
            runs[-1] += char
        elif runs[-1]:
            runs.append("")
    runs = [run for run in runs if run]
    return next((run for run in runs if "\n" in run), min(runs, key=len, default=""))
