import json
import os
import re
import subprocess
import sysconfig

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


def test_the_tutorial_of_the_audit_runs(request, tmp_path):
    """Its commands, in an empty folder, say what the page says they do."""
    page = (request.config.rootpath / "docs" / "audit.md").read_text(encoding="utf-8")
    commands = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    said = [
        subprocess.run(
            ["bash", "-c", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        for block in commands
    ]
    dry, audit, reports = said
    assert "8 images and 0 references: 400 denoiser evaluations" in dry.stdout
    assert audit.returncode == 1
    assert "2 confirmed, 2 none" in audit.stdout
    for line, name in (("sumisno", "template-1600-0.png"), ("salarzo", "verbatim-1600-5.png")):
        assert re.search(f"{line}.*confirmed.*{name}", audit.stdout)
    assert reports.returncode == 0
    assert "## Memorization" in reports.stdout
    assert "stability, suspected at p ≤ 0.01" in reports.stdout
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_pictures_and_pages_exist(request):
    root = request.config.rootpath
    for page in (root / "README.md", *(root / "docs").glob("*.md")):
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_guidance_in_the_examples_is_the_bundled_models(request):
    guidance = Manifest.load(BUNDLE).guidance
    assert set(re.findall(r"guidance(?:_scale)?=([\d.]+)", text(request))) == {f"{guidance:g}"}


def test_figures_on_the_pages_are_the_published_ones(request):
    """Every figure that is marked with a file and a key stands there in docs/results."""
    root = request.config.rootpath
    marked = [
        (page.name, *found)
        for page in (root / "README.md", *(root / "docs").glob("*.md"))
        for found in re.findall(r"<!-- (\w+):([^>]+?) -->(-?\d+(?:\.\d+)?)", page.read_text(encoding="utf-8"))
    ]
    for page, name, key, shown in marked:
        value = json.loads((root / f"docs/results/{name}.json").read_text())
        for part in key.split("/"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        value = value["value"] if isinstance(value, dict) else value
        digits = len(shown.partition(".")[2])
        assert f"{value:.{digits}f}" == shown, f"{page}: {key}; run benchmarks/publish.py"
    assert {"first_look", "proving_ground"} <= {name for _, name, _, _ in marked}
