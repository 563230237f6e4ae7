"""Put the figures of docs/results where README and docs show them.

    python benchmarks/publish.py

A figure stands behind a comment that names its file and key, and keeps the number of digits that it is shown with. With
a dictionary for a value its `value` is shown. `tests/test_readme.py` checks that every page is up to date.
"""

import json
import re
from pathlib import Path

MARK = re.compile(r"(<!-- (\w+):([^>]+?) -->)(-?\d+(?:\.\d+)?)")


def main() -> None:
    """Rewrite every page whose figures are old."""
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        old = page.read_text(encoding="utf-8")
        new = MARK.sub(shown, old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(page)


def shown(found: re.Match[str]) -> str:
    """The mark with the figure as published."""
    mark, name, key, figure = found.groups()
    value = json.loads(Path(f"docs/results/{name}.json").read_text(encoding="utf-8"))
    for part in key.split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    value = value["value"] if isinstance(value, dict) else value
    digits = len(figure.partition(".")[2])
    return f"{mark}{value:.{digits}f}"


if __name__ == "__main__":
    main()
