"""Strategies that damage what is valid: bytes, JSON values and tables."""

import copy
import json

from hypothesis import strategies as st

DEEP = 200_000
"""Brackets of JSON that is nested too deeply for every parser."""

ODD_NUMBERS = [0, -1, 1, 2, 7, 10**19, -(10**19), 10**400, 0.5, -0.5, 1e308, -1e308, *map(float, ("nan", "inf"))]
ODD_TEXTS = ["", " ", "x", "1", "nan", "\x00", "a\nb", "\u2028", "é" * 300, "../../etc", "\ud800", "\U0001f600"]

scalars = st.one_of(st.none(), st.booleans(), st.sampled_from(ODD_NUMBERS), st.sampled_from(ODD_TEXTS), st.text())
"""JSON values without parts."""

values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""JSON values of every type."""


@st.composite
def damaged(draw, content):
    """Bytes with flipped bits, cut off, lengthened, with a part doubled, moved or overwritten, or other bytes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "add", "double", "zero", "drop", "byte", "empty"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            data = data[:place]
        elif kind == "add":
            data[place:place] = draw(st.binary(max_size=40))
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 200))]
        elif kind == "zero":
            end = min(len(data), place + draw(st.integers(1, 64)))
            data[place:end] = bytes(end - place)
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 200))]
        elif kind == "empty":
            data = bytearray()
    return bytes(data)


@st.composite
def edited(draw, value):
    """A JSON value with one to three places changed, removed or added."""
    whole = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = whole, 0
        while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 5)):
            holder = holder[key]
            key = (
                draw(st.sampled_from(sorted(holder)))
                if isinstance(holder, dict)
                else draw(st.integers(0, len(holder) - 1))
            )
        kind = draw(st.sampled_from(["change", "change", "change", "remove", "add", "rename", "double"]))
        if kind == "change" or holder is whole:
            holder[key] = draw(values)
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = holder.pop(key)
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(values)
        else:
            holder.insert(key, holder[key] if kind == "double" else draw(values))
    return whole[0]


@st.composite
def json_file(draw, value):
    """The bytes of a JSON file: a valid one that was edited, damaged or nested, or in another encoding."""
    kind = draw(
        st.sampled_from(["edited"] * 6 + ["damaged"] * 2 + ["deep", "utf-16", "latin-1", "any", "digits", "twice"])
    )
    if kind == "edited":
        return as_json(draw(edited(value)))
    if kind == "damaged":
        return draw(damaged(as_json(value)))
    if kind == "deep":
        bracket = draw(st.sampled_from(["[", '{"a":']))
        text = json.dumps(value)
        place = draw(st.integers(0, len(text)))
        return (text[:place] + bracket * DEEP + text[place:]).encode()
    if kind == "digits":
        text = json.dumps(value)
        place = draw(st.integers(0, len(text)))
        return (text[:place] + "9" * draw(st.sampled_from([20, 400, 5000])) + text[place:]).encode()
    if kind == "twice":
        return as_json(value) * 2
    if kind == "any":
        return as_json(draw(values))
    return json.dumps(value, ensure_ascii=False).encode(kind, "replace")


@st.composite
def edited_rows(draw, rows):
    """Rows of a table with cells, columns or rows changed, which may no longer be a table."""
    rows = copy.deepcopy(rows)
    names = sorted(rows[0])
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(
            st.sampled_from(["cell", "cell", "column", "drop", "rename", "row", "double", "swap", "none", "add"])
        )
        name, row = draw(st.sampled_from(names)), draw(st.integers(0, max(len(rows) - 1, 0)))
        if not rows:
            break
        if kind == "cell":
            rows[row][name] = draw(values)
        elif kind == "none":
            rows[row][name] = None
        elif kind == "column":
            cell = draw(values)
            rows = [{**each, name: cell} for each in rows]
        elif kind == "drop":
            rows = [{key: value for key, value in each.items() if key != name} for each in rows]
        elif kind == "rename":
            other = draw(st.sampled_from([*names, "x", "", "norm:x", "signal:x"]))
            rows = [{(other if key == name else key): value for key, value in each.items()} for each in rows]
        elif kind == "row":
            del rows[row]
        elif kind == "double":
            rows.append(rows[row])
        elif kind == "swap":
            rows.reverse()
        elif kind == "add":
            rows = [{**each, draw(st.text(max_size=8)): draw(scalars)} for each in rows]
    return rows


def as_json(value):
    """A JSON value as bytes; half surrogates become the escapes that JSON has for them."""
    return json.dumps(value).encode()
