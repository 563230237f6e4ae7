"""Show the examples of docstrings as code.

The part `Example:` of a docstring holds indented code without a fence, which Markdown would join to one paragraph.
"""

import re
from typing import Any

try:
    import griffe
except ImportError:  # only the site needs it
    Extension: type = object
else:
    Extension = griffe.Extension

EXAMPLE = re.compile(r"^Example:\n(?P<code>(?:(?:    .*)?\n)*(?:    .*))", flags=re.MULTILINE)


class Examples(Extension):
    """Puts a fence around the example of every docstring."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    """A docstring whose example is a fenced block."""
    return EXAMPLE.sub(r"Example:\n    ```python\n\g<code>\n    ```", docstring)
