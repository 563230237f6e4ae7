"""Numbers as JSON has them. Importing this module loads nothing heavy."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """A value, with None for NaN and infinity, which JSON lacks; also inside a list, tuple or dict.

    A tuple becomes a list.
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
