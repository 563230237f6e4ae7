"""Prompt files: .txt with one prompt per line, .csv with a column `prompt`, .jsonl with a key `prompt`."""

import csv
import json
from io import StringIO
from pathlib import Path

from cryptomnesia.errors import UsageError


def read_prompts(path: Path) -> list[str]:
    """The prompts of a .txt, .csv or .jsonl file in their order; blank ones are left out.

    Raises:
        UsageError: for a file that is missing, of another kind, not UTF-8, malformed, or without prompts.
    """
    readers = {".txt": _lines, ".csv": _column, ".jsonl": _objects}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise UsageError(f"got prompts file {path}; expected a .txt, .csv or .jsonl file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"no prompts file {path}; check the path") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"prompts file {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"prompts file {path} cannot be read: {error.strerror}") from None
    prompts = [prompt.strip() for prompt in read(text, path) if prompt.strip()]
    if not prompts:
        raise UsageError(f"prompts file {path} holds no prompt; give at least one")
    for number, prompt in enumerate(prompts, start=1):
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise UsageError(f"prompts file {path}, prompt {number} holds half of a surrogate pair; write it out whole")
    return prompts


def _lines(text: str, path: Path) -> list[str]:
    """The lines of a .txt file."""
    return text.split("\n")


def _column(text: str, path: Path) -> list[str]:
    """The column `prompt` of a .csv file."""
    rows = csv.DictReader(StringIO(text, newline=""))
    try:
        if "prompt" not in (rows.fieldnames or ()):
            got = ", ".join(rows.fieldnames or ()) or "nothing"
            raise UsageError(f"prompts file {path} has columns {got}; name one of them `prompt`")
        return [row["prompt"] or "" for row in rows]
    except csv.Error as error:
        raise UsageError(f"prompts file {path}, line {rows.line_num}: {error}; quote its fields as CSV asks") from None


def _objects(text: str, path: Path) -> list[str]:
    """The key `prompt` of every line of a .jsonl file."""
    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (json.JSONDecodeError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise UsageError(
                f'prompts file {path}, line {number}: expected an object like {{"prompt": "a red circle"}}'
            )
        prompts.append(prompt)
    return prompts
