"""Which column of a table, or key of an object, holds the prompts."""

import logging
from collections.abc import Sequence
from difflib import get_close_matches

from cryptomnesia.errors import UsageError

logger = logging.getLogger("cryptomnesia")

USUAL = ("prompt", "caption", "text")
"""Names of the column with the prompts, the first one that is there is used."""


def chosen(names: Sequence[str], wanted: str | None, place: str, what: str = "columns") -> str:
    """The column with the prompts.

    Args:
        names: of the columns.
        wanted: the name that the user gave, None for the first of `USUAL` that is there. Upper and lower case are told
            apart only if that is needed.
        place: where the columns are, for messages.
        what: the columns are called.

    Raises:
        UsageError: if there is none, or it is there twice.
    """
    plain = [name.strip() for name in names]
    for name in (wanted,) if wanted is not None else USUAL:
        same = [known for known in plain if known == name] or [
            known for known in plain if known.lower() == name.lower()
        ]
        if len(same) > 1:
            raise UsageError(f"{place} has the {what} {', '.join(same)}, which are the same; rename all but one")
        if same:
            others = [known for known in plain if known.lower() in USUAL and known != same[0]]
            if wanted is None and others:
                logger.warning(
                    "%s has the %s %s; prompts are from %s, and --column names another",
                    place,
                    what,
                    ", ".join(name for name in plain if name in {same[0], *others}),
                    same[0],
                )
            return names[plain.index(same[0])]
    got = ", ".join(map(_shown, plain[:20])) or "nothing"
    if wanted is None:
        raise UsageError(f"{place} has {what} {got}; name one of them `prompt`, or give --column NAME")
    guess = get_close_matches(wanted, plain, n=1)
    hint = f" (did you mean {_shown(guess[0])}?)" if guess else ""
    raise UsageError(f"{place} has no {wanted}{hint}, its {what} are {got}; give --column another name")


def _shown(name: str) -> str:
    """A name in a message of one line."""
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    return text if len(text) <= 40 else f"{text[:37]}..."
