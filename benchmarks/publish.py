"""Write the figures of docs/results into README and docs.

    python benchmarks/publish.py           # rewrite every page whose figures are old
    python benchmarks/publish.py --check   # change nothing; exit code 1 if a page is old, 2 if a marker is wrong

A page says where a table stands with one marker at its begin and one at its end:

    <!-- results: stability.detection -->
    <!-- end -->

Everything between the two is generated from `docs/results/*.json` by the function of that name in `tables.py`, followed
by the command and the commit that made the results file. A table whose figures are in no file says "Not measured yet."
or "Not measured on a GPU." `tests/test_readme.py` checks that every page is up to date.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tables import TABLES, NotMeasured, Results

BEGIN = re.compile(r"<!-- results: *(\S+) *-->")
BLOCK = re.compile(r"(?P<begin><!-- results: *(?P<name>\S+) *-->\n)(?P<body>.*?)(?P<end><!-- end -->)", flags=re.DOTALL)


class MarkerError(ValueError):
    """A marker without its partner, or with a name that no table has."""


def main() -> int:
    """Rewrite or check every page."""
    parser = argparse.ArgumentParser(description="Write the figures of docs/results into README and docs.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is old")
    check = parser.parse_args().check
    root = Path(__file__).resolve().parent.parent
    try:
        old = list(stale(root))
    except MarkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page, new in old:
        print(page.relative_to(root))
        if not check:
            page.write_text(new, encoding="utf-8")
    return 1 if check and old else 0


def stale(root: Path) -> Iterator[tuple[Path, str]]:
    """Every page whose figures are old, with the text that it should have."""
    for page in pages(root):
        old = page.read_text(encoding="utf-8")
        try:
            new = filled(old, root / "docs" / "results")
        except MarkerError as error:
            raise MarkerError(f"{page.relative_to(root)}: {error}") from None
        if new != old:
            yield page, new


def pages(root: Path) -> list[Path]:
    """The pages that can hold figures."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, folder: Path) -> str:
    """The text of a page with every table written anew from the files in `folder`.

    Raises:
        MarkerError: for a begin without an end, an end without a begin, or a name that no table has.
    """
    begins, blocks = len(BEGIN.findall(text)), list(BLOCK.finditer(text))
    if len(blocks) != begins or text.count("<!-- end -->") != begins or any(BEGIN.search(b["body"]) for b in blocks):
        raise MarkerError(f"{begins} begin markers and {text.count('<!-- end -->')} end markers, not in turn")

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise MarkerError(f"no table is called {name!r}; known are {', '.join(sorted(TABLES))}")
        results = Results(folder)
        try:
            body = f"{TABLES[name](results)}\n\n{results.origin()}"
        except NotMeasured as missing:
            body = missing.words
        return f"{found['begin']}\n{body}\n\n{found['end']}"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    sys.exit(main())
