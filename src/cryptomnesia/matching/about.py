"""What an index says of itself, in a file of its folder."""

import json
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UnreachableError, UsageError
from cryptomnesia.matching.descriptors import Descriptor
from cryptomnesia.places import read_text

FILE = "index.json"
"""Name of the file."""

FORMAT = 2
"""Version of the layout of an index."""


def read_about(folder: Path) -> dict[str, Any]:
    """Read what an index says about itself: format, descriptor, source, readings, what was skipped, whether complete.

    Raises:
        UsageError: if there is no index, it is damaged, or it has the format of another version.
    """
    again = "make one with `cryptomnesia index build`"
    try:
        about: dict[str, Any] = json.loads(read_text(folder / FILE))
        version = about["format"]
    except FileNotFoundError:
        raise UsageError(f"no index in {folder}; {again}") from None
    except UnreachableError:
        raise
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UsageError(f"{folder} is not an index ({error}); {again}") from None
    if version != FORMAT:
        raise UsageError(f"{folder} has index format {version}, this version reads {FORMAT}; build it anew")
    kinds = {
        "descriptor": str,
        "source": str,
        "readings": dict,
        "skipped": dict,
        "complete": bool,
        "stamps": dict,
        "rows": int,
    }
    wrong = [name for name, kind in kinds.items() if not isinstance(about.get(name, kind()), kind)]
    if missing := [name for name in ("descriptor", "source", "complete") if name not in about] + wrong:
        raise UsageError(f"{folder} is not an index (its {missing[0]} is missing or damaged); build it anew")
    return {"readings": {}, "skipped": {}, "stamps": {}, **about}


def check_descriptor(folder: Path, about: dict[str, Any], descriptor: Descriptor) -> None:
    """Check that the index in `folder`, which says `about` itself, was built with this descriptor.

    Raises:
        UsageError: if it was built with another one.
    """
    if about["descriptor"] != descriptor.name:
        raise UsageError(
            f"{folder} was built with the descriptor {about['descriptor']}, asked for was {descriptor.name}; "
            "build another"
        )
