"""README and pages: the examples run, links and pictures exist, figures are those of docs/results."""

import json
import re
import subprocess
import sys

import pytest

from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.registry import entries


@pytest.fixture
def root(request):
    return request.config.rootpath


@pytest.fixture
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def pages(root):
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]


def test_the_python_examples_of_the_readme_print_what_it_says(readme, capsys):
    """Those of the pages are run by docs/conftest.py."""
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == readme.count("```python")
    for block, printed in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
        assert capsys.readouterr().out == printed


def test_pictures_and_pages_exist(root):
    generated = (
        "reference/commands.md",
        "how-to/example-package.md",
        "methods/detectors/",
        "methods/localizers/",
        "methods/mitigations/",
    )
    for page in pages(root):
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            place = (page.parent / target).resolve()
            made = place.is_relative_to(root / "docs") and str(place.relative_to(root / "docs")).startswith(generated)
            assert made or place.exists(), f"{page.relative_to(root)}: {target}"


def test_the_guidance_in_the_readme_is_the_bundled_models(readme):
    guidance = set(re.findall(r"guidance(?:_scale)?=([\d.]+)", readme))
    assert guidance <= {f"{Manifest.load(BUNDLE).guidance:g}"}


def test_figures_on_the_pages_are_the_published_ones(root):
    checked = subprocess.run(
        [sys.executable, root / "benchmarks" / "publish.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, f"run benchmarks/publish.py\n{checked.stdout}{checked.stderr}"


def test_every_table_stands_on_a_page_and_no_figure_has_a_comment_of_its_own(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import publish

    texts = [page.read_text(encoding="utf-8") for page in publish.pages(root)]
    assert {name for text in texts for name in publish.BEGIN.findall(text)} == set(publish.TABLES)
    assert not any(re.search(r"<!-- \w+:\S+ -->-?\d", text) for text in texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: audit.scale -->\n", "1 begin markers and 0 end markers"),
        ("<!-- end -->", "0 begin markers and 1 end markers"),
        ("<!-- results: audit.scale -->\n<!-- results: audit.scale -->\n<!-- end --><!-- end -->", "not in turn"),
        ("<!-- results: audit.nothing -->\n<!-- end -->", "no table is called 'audit.nothing'"),
    ],
)
def test_wrong_markers_are_errors(root, monkeypatch, text, message):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import publish

    with pytest.raises(publish.MarkerError, match=message):
        publish.filled(text, root / "docs" / "results")


def test_a_table_names_command_and_commit(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(root / "benchmarks")
    from tables import Results

    (tmp_path / "one.json").write_text('{"a": [1, 2], "made_by": {"command": "python one.py", "commit": "abc1234"}}')
    results = Results(tmp_path)
    assert results("one", "a", 1) == 2
    assert results.origin() == "Numbers: `docs/results/one.json`, made by `python one.py`, commit `abc1234`."


def test_a_table_without_a_file_says_so(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import publish

    marked = "<!-- results: grounds.scenes -->\n{}<!-- end -->"
    nothing = marked.format("\nNot measured yet.\n\n")
    assert publish.filled(marked.format("something\n"), tmp_path) == nothing
    (tmp_path / "grounds.json").write_text('{"grounds": {"drawings": {}}}', encoding="utf-8")
    assert publish.filled(nothing, tmp_path) == nothing


def test_the_tables_of_a_ground_read_what_verify_prints(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import publish

    share = {"value": 0.5, "low": 0.25, "high": 0.75}
    figures = {
        "scheduler": "PNDMScheduler",
        "bytes": 1200,
        "verbatim_replicated": share,
        "denoising_spread_unconditional": [0.9, 1.1],
        "dose_response": {"verbatim": {"4": share, "1600": share}},
        "guidance_curve": {"1.5": {"recognized": share, "frechet": 2.0}},
        "recognized_of_ground": 0.9,
        "frechet_of_ground": 1.5,
        "out_of_reach": ["object-1", "object-2"],
        "denoising_by_timestep_unconditional": {"50": 0.875, "150": 1.0},
        "settings": {
            "PNDMScheduler": {"1.5": {"by_wording": {"verbatim": {"plain": share}}, "control_replicated": share}}
        },
    }
    results = {
        "made_by": {"commit": "fff", "commits": {"scenes": "abc", "pixels": "fff"}},
        "grounds": {"scenes": figures},
    }
    (tmp_path / "grounds.json").write_text(json.dumps(results), encoding="utf-8")
    expected = {
        "": ["| `scheduler` | `PNDMScheduler` |", "| `bytes` | 1200 |", "| 0.500 (0.250–0.750) |", "| 0.900–1.100 |"],
        ".dose": ["| 4 | 1600 |", "| verbatim | 0.50 (0.25–0.75) | 0.50 (0.25–0.75) |"],
        ".settings": [f"| PNDM | 1.5 | {kind} | – | 0.50 (0.25–0.75) | – |" for kind in ("verbatim", "never planted")],
        ".guidance": ["| 1.5 | 0.500 (0.250–0.750) | 2.00 |", "| the ground's own pictures | 0.900 | 1.50 |"],
        ".denoising": ["| denoising ratio at timestep | 50 | 150 |", "| unconditional branch | 0.88 | 1.00 |"],
    }
    for suffix, cells in expected.items():
        page = publish.filled(f"<!-- results: grounds.scenes{suffix} -->\n<!-- end -->", tmp_path)
        assert all(cell in page for cell in cells), page
        # a ground may have been measured later than others of the same file
        assert "made by `cryptomnesia proving-ground verify scenes`, commit `abc`." in page


def test_the_readme_counts_the_pipeline_classes(request):
    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    assert f"lists {len(entries('family'))} pipeline classes" in text
