"""The shell commands of the tutorials run, and do what the pages say."""

import os
import re
import subprocess
import sys
import sysconfig

import pytest

TUTORIALS = ("auditor", "pictures")


def blocks(page, language="sh"):
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def run(block, folder, *program):
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*(program or ("bash", "-c")), block],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_tutorial_with_commands_is_run(request):
    pages = (request.config.rootpath / "docs" / "tutorials").glob("*.md")
    assert {page.stem for page in pages if blocks(page.read_text(encoding="utf-8"))} == set(TUTORIALS)


@pytest.fixture(scope="module")
def audited(request, tmp_path_factory):
    """The results of the auditor's commands, one after the other in an empty folder."""
    folder = tmp_path_factory.mktemp("tutorial")
    page = (request.config.rootpath / "docs" / "tutorials" / "auditor.md").read_text(encoding="utf-8")
    return folder, [run(block, folder) for block in blocks(page)]


def test_no_command_of_the_audit_is_refused(audited):
    for done in audited[1]:
        assert done.returncode in (0, 1), f"{done.args[-1]}\n{done.stderr}"


def test_the_audit_says_what_the_page_says(audited):
    folder, (_, dry, audit, reports, rescored, _) = audited
    assert "8 images and 0 references: 408 denoiser evaluations" in dry.stdout
    assert audit.returncode == 1
    assert "2 confirmed, 2 none" in audit.stdout
    for line, name in (("sumisno", "template-1600-0.png"), ("salarzo", "verbatim-1600-5.png")):
        assert re.search(f"{line}.*confirmed.*{name}", audit.stdout)
    assert "## Memorization" in reports.stdout
    assert "data:image/png;base64," in (folder / "report.html").read_text(encoding="utf-8")
    assert "stability, suspected at p ≤ 0.01" in rescored.stdout


def test_the_audit_behind_a_guard_prints_what_the_page_says(audited, request):
    page = (request.config.rootpath / "docs" / "tutorials" / "auditor.md").read_text(encoding="utf-8")
    (shown,) = blocks(page, "text")
    behind = audited[1][-1]
    assert behind.returncode == 0
    assert [line.rstrip() for line in behind.stdout.splitlines()][-len(shown.splitlines()) :] == shown.splitlines()


@pytest.fixture(scope="module")
def looked_for(request, tmp_path_factory):
    """The page about pictures, and what its commands and then its Python block print in an empty folder."""
    folder = tmp_path_factory.mktemp("pictures")
    page = (request.config.rootpath / "docs" / "tutorials" / "pictures.md").read_text(encoding="utf-8")
    done = [run(block, folder) for block in blocks(page)]
    return page, folder, [*done, *(run(block, folder, sys.executable, "-c") for block in blocks(page, "python"))]


def test_the_search_for_pictures_prints_what_the_page_says(looked_for):
    page, folder, (made, searched, _) = looked_for
    assert made.returncode == 0, made.stderr
    assert searched.returncode == 1, searched.stderr
    shown = blocks(page, "text")[0].splitlines()
    assert [line.rstrip() for line in searched.stdout.splitlines()][: len(shown)] == shown
    assert len(list(folder.glob("found/picture-*.html"))) == 5


def test_the_same_search_in_python_prints_what_the_page_says(looked_for):
    page, _, (*_, read) = looked_for
    assert read.returncode == 0, read.stderr
    assert read.stdout == blocks(page, "text")[1]
