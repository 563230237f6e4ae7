"""The shell commands of the tutorials run, and do what the pages say."""

import os
import re
import subprocess
import sys
import sysconfig

import pytest

TUTORIALS = ("auditor", "pictures", "small-sets", "training")


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


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    """A function that runs the commands of a tutorial about training, in a folder that holds the examples."""

    def follow(name):
        folder = tmp_path_factory.mktemp(name)
        (folder / "examples").symlink_to(request.config.rootpath / "examples")
        page = (request.config.rootpath / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
        return page, folder, [run(block, folder) for block in blocks(page)]

    return follow


def lines_of_checkpoints(text):
    """(name of the checkpoint, pictures that it copies) of every line of the first table."""
    table = text.split("\u2514")[0]
    return [(name, int(copied)) for name, copied in re.findall(r"│ ([\w -]+?) +│ +(\d+) of \d+ +│", table)]


def check_course(page, printed, *, names):
    """The page shows what was printed, but for figures that differ from one kind of processor to another."""
    (shown,) = blocks(page, "text")
    for text in (shown, printed):
        copied = dict(lines_of_checkpoints(text))
        assert list(copied)[1:] == names
        # the last checkpoint copies more than the base is said to
        assert copied[names[-1]] > next(iter(copied.values()))
    start, found = (re.match(r"Copying starts at step [\d,]+", text) for text in (shown, printed))
    assert start, shown
    assert found, printed


@pytest.mark.slow
def test_the_tutorial_for_loras_says_which_checkpoint_to_keep(trained):
    page, folder, (made, lora, scales) = trained("training")
    assert made.returncode == 0, made.stderr
    assert lora.returncode == 0, lora.stderr
    assert scales.returncode == 1, scales.stderr
    check_course(page, lora.stdout, names=[f"checkpoint-{step}" for step in (60, 120, 180, 240)])
    assert "LoRA scale" in scales.stdout
    assert (folder / "course" / "index.html").exists()


@pytest.mark.slow
def test_the_tutorial_for_small_sets_finds_copies_without_captions(trained):
    page, folder, (made, models, found) = trained("small-sets")
    assert made.returncode == 0, made.stderr
    assert models.returncode == 0, models.stderr
    assert found.returncode == 1, found.stderr
    check_course(page, found.stdout, names=[f"step-{step}" for step in (400, 800, 1200, 1600)])
    assert (folder / "course" / "index.html").exists()
