"""Prompts from text files: .txt, .csv, .tsv, .jsonl and .json."""

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from cryptomnesia.errors import UsageError
from cryptomnesia.prompts.columns import chosen

_EXAMPLE = '{"prompt": "a red circle"}'


def lines(path: Path, column: str | None) -> list[str]:
    """The lines of a .txt file."""
    if column is not None:
        raise UsageError(f"got the column {column} for {path}, whose lines are the prompts; leave --column out")
    return text_of(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def table(path: Path, column: str | None) -> list[str]:
    """The column with the prompts of a .csv file, separated by commas, semicolons or tabs, or of a .tsv file."""
    text = text_of(path)
    first = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in first else ","
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"
    rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    numbered = _rows(rows, path)
    _, names = next(numbered, (1, []))
    place = names.index(chosen(names, column, f"prompts file {path}"))
    prompts = []
    for line, row in numbered:
        if not row:
            continue
        if len(row) > len(names):
            raise UsageError(
                f"prompts file {path}, line {line} has {len(row)} fields, and the header {len(names)}; quote fields "
                "that hold the separator"
            )
        if place >= len(row):
            raise UsageError(f"prompts file {path}, line {line} ends before {names[place]!r}; complete the line")
        prompts.append(row[place])
    return prompts


def _rows(rows: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with the line on which it begins."""
    while True:
        line = rows.line_num + 1
        try:
            yield line, next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote is not closed" if "unexpected end" in str(error) else str(error)
            raise UsageError(f"prompts file {path}, line {line}: {reason}; quote its fields as CSV asks") from None


def json_lines(path: Path, column: str | None) -> list[str]:
    """The key with the prompts of every line of a .jsonl file."""
    numbered = enumerate(text_of(path).split("\n"), start=1)
    objects = [
        (f"prompts file {path}, line {number}", _parsed(line, f"prompts file {path}, line {number}"))
        for number, line in numbered
        if line.strip()
    ]
    return _of_objects(objects, column)


def json_list(path: Path, column: str | None) -> list[str]:
    """The prompts of a .json file: a list of texts or objects, or captions as COCO has them."""
    place = f"prompts file {path}"
    found = _parsed(text_of(path), place)
    if isinstance(found, dict):
        # COCO's name for the list of captions, and the usual ones
        lists = [name for name in ("annotations", "prompts", "captions", "data") if isinstance(found.get(name), list)]
        if len(lists) != 1:
            raise UsageError(f"{place}: expected a list of texts, or of objects like {_EXAMPLE}")
        found = found[lists[0]]
    if not isinstance(found, list):
        raise UsageError(f"{place}: expected a list of texts, or of objects like {_EXAMPLE}")
    if found and all(isinstance(item, str) for item in found):
        return found
    return _of_objects([(f"{place}, item {number}", item) for number, item in enumerate(found, start=1)], column)


def _of_objects(objects: Sequence[tuple[str, Any]], column: str | None) -> list[str]:
    """The prompts of objects, each given with its place."""
    prompts: list[str] = []
    key: str | None = None
    for place, item in objects:
        if not isinstance(item, dict):
            raise UsageError(f"{place}: expected an object like {_EXAMPLE}")
        if key is None:
            key = chosen(list(item), column, place, "keys")
        if key not in item:
            raise UsageError(f"{place}: expected an object like {_EXAMPLE}, and it has no key {key!r} as the first one")
        prompts += texts_of(item[key], place)
    return prompts


def texts_of(value: Any, place: str) -> list[str]:
    """The prompts of one value: a text, or a list of them; null stands for a blank one.

    Raises:
        UsageError: for anything else.
    """
    values = value if isinstance(value, list) else [value]
    for one in values:
        if one is not None and not isinstance(one, str):
            raise UsageError(f"{place}: expected an object like {_EXAMPLE}, got a prompt that is no text")
    return ["" if one is None else one for one in values]


def _parsed(text: str, place: str) -> Any:
    """The JSON value of a text, in which no object has a key twice."""

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise _TwiceError
        return made

    try:
        # whole numbers of thousands of digits are refused by int
        return json.loads(text, object_pairs_hook=no_twins, parse_int=float)
    except _TwiceError:
        raise UsageError(f"{place} has a key twice; leave one out") from None
    except RecursionError:
        raise UsageError(f"{place} is nested too deeply; expected an object like {_EXAMPLE}") from None
    except ValueError:
        raise UsageError(f"{place}: expected an object like {_EXAMPLE}") from None


class _TwiceError(Exception):
    """A key is there twice."""


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        UsageError: for a file that is missing, cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"no prompts file {path}; check the path") from None
    except OSError as error:
        raise UsageError(f"prompts file {path} cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seems = " and seems to be UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UsageError(f"prompts file {path} is not UTF-8 (byte {error.start}){seems}; save it as UTF-8") from None
