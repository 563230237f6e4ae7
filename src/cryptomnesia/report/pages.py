"""What pages without scripts share: style, and how numbers are written. Importing this module loads nothing heavy."""

import base64
import hashlib
import math
from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str, *styles: str) -> "Template":
    """A template that escapes what it is given, and knows its style and the hash that its security policy allows.

    Args:
        name: of the template's file in `static`.
        styles: names of the style sheets there, later ones overrule earlier ones.
    """
    from jinja2 import Environment, StrictUndefined

    static = files("cryptomnesia.report") / "static"
    style = "".join(static.joinpath(sheet).read_text(encoding="utf-8") for sheet in styles)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.globals |= {
        "style": Markup(style),
        "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "number": number,
    }
    return environment.from_string(static.joinpath(name).read_text(encoding="utf-8"))


def number(value: float | None, digits: int = 3) -> str:
    """A number with some digits, a dash for none, ∞ for pure noise."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    # rounded first, because `g` alone writes 104 with two digits as 1e+02
    return f"{float(f'{value:.{digits}g}'):g}"
