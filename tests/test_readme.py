import json
import re

import pytest

from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest


def text(request):
    return (request.config.rootpath / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run(request, capsys):
    root = request.config.rootpath
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            exec(compile(block, page.name, "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert "torch.Size([1, 50])" in out
    assert "a red circle on a blue ground" in out


def test_pictures_and_pages_exist(request):
    root = request.config.rootpath
    for page in (root / "README.md", *(root / "docs").glob("*.md")):
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_guidance_in_the_examples_is_the_bundled_models(request):
    guidance = Manifest.load(BUNDLE).guidance
    assert set(re.findall(r"guidance(?:_scale)?=([\d.]+)", text(request))) == {f"{guidance:g}"}


@pytest.mark.parametrize("name", ["first_look", "proving_ground"])
def test_figures_in_the_readme_are_the_published_ones(request, name):
    """Every figure cell `value (low–high)` or plain figure marked with its key stands in the results."""
    results = json.loads((request.config.rootpath / f"docs/results/{name}.json").read_text())
    for key, shown in re.findall(rf"<!-- {name}:([\w./-]+) -->([\d.]+)", text(request)):
        value = results
        for part in key.split("/"):
            value = value[part]
        value = value["value"] if isinstance(value, dict) else value
        digits = len(shown.partition(".")[2])
        assert f"{value:.{digits}f}" == shown, key
    assert re.search(rf"<!-- {name}:", text(request))
