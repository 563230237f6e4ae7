"""Pages about errors and methods agree with the source."""

import ast
import re
import sys
from types import SimpleNamespace

import pytest

from cryptomnesia.registry import entries


def words(node):
    """A message with … for everything that differs, all texts of a condition one after the other."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in values)
        case ast.BinOp(left=left, right=right):
            return words(left) + words(right)
        case _:
            return "…"


def messages(root):
    """Every text in the source, with … for what differs: a message may be written some lines before it is raised."""
    for path in (root / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                yield words(node)


def test_every_message_on_the_page_of_errors_is_one_of_the_source(request):
    root = request.config.rootpath
    known = list(messages(root))
    page = (root / "docs" / "errors.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE)
    assert len(headings) > 50
    unknown = []
    for heading in headings:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in heading.split("…")), flags=re.DOTALL)
        if not any(pattern.search(message) for message in known):
            unknown.append(heading)
    assert not unknown, "no such message in src: " + "\n".join(unknown)


def test_every_error_on_the_page_has_a_cause_and_a_fix(request):
    page = (request.config.rootpath / "docs" / "errors.md").read_text(encoding="utf-8")
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        body = section.split("\n## ")[0]
        assert "**Cause.**" in body, section.splitlines()[0]
        assert "**Fix.**" in body, section.splitlines()[0]


@pytest.fixture
def generated(request, monkeypatch):
    monkeypatch.syspath_prepend(request.config.rootpath / "docs")
    import generated

    generated.ready.cache_clear()
    yield generated
    generated.ready.cache_clear()


def test_the_page_of_a_method_is_what_its_class_says(generated, monkeypatch):
    class Example:
        """An example."""

        name = "example"
        summary = "Says nothing."
        source = "nowhere"
        use_when = "Never, it is an example."
        avoid_when = "Always; use `drift`."
        requires = frozenset({"guidance"})

        def cost(self, setup):
            return 16.0

    entry = SimpleNamespace(kind="detector", name="example", package="examples", version="1.0", state="ready")
    monkeypatch.setattr(generated.registry, "create", lambda kind, name: Example())
    monkeypatch.setattr(generated.registry, "entries", lambda kind: {"example": entry} if kind == "detector" else {})
    monkeypatch.setattr(generated, "bundled_setup", lambda: None)
    monkeypatch.setattr(sys.modules[__name__], "__doc__", "Example: a formula.\n\ns = 0")
    page = generated.method_page(entry)
    for text in ("# example", "Says nothing.", "nowhere", "examples 1.0", "unconditional branch", "16 further"):
        assert text in page
    assert page.index("Never, it is") < page.index("Always; use") < page.index("s = 0")
    assert f"::: {Example.__module__}." in page
    row = "| [`example`](detectors/example.md) | Says nothing. | guidance | 16 further evaluations of the denoiser |"
    assert row in generated.on_page_markdown("before\n\n<!-- methods: detector -->\n\nafter")


def test_all_commands_are_on_their_page(generated):
    import typer

    page = generated.commands_page(typer.main.get_command(generated.app))
    for heading in ("detect", "audit", "proving-ground train", "index build"):
        assert f"\n## {heading}\n" in page
    assert "`--help`" not in page.split("## ", 1)[1]


def test_every_method_has_a_page_with_all_its_parts(generated):
    paths = dict(generated.pages())
    assert {"methods/detectors/drift.md", "methods/localizers/collapse.md", "reference/commands.md"} <= set(paths)
    for path, text in paths.items():
        if path.startswith("methods/"):
            for section in ("## When to use it", "## When not to use it", "## How it works"):
                body = text.split(section)[1].split("\n## ")[0]
                assert body.strip(), f"{path}: {section}"


def test_examples_of_docstrings_are_code(request, monkeypatch):
    monkeypatch.syspath_prepend(request.config.rootpath / "docs")
    import docstrings

    text = "Do it.\n\nExample:\n    with a:\n        b()\n\n    c()\n\nRaises:\n    Error: never."
    code = "    ```python\n    with a:\n        b()\n\n    c()\n    ```"
    assert docstrings.fenced(text) == f"Do it.\n\nExample:\n{code}\n\nRaises:\n    Error: never."
    assert docstrings.fenced("No code here.") == "No code here."


def test_every_pipeline_class_is_on_the_page_of_families(request):
    page = (request.config.rootpath / "docs" / "reference" / "families.md").read_text(encoding="utf-8")
    missing = [name for name in entries("family") if f"`{name}`" not in page]
    assert not missing
