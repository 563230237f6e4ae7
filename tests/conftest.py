"""Settings of the whole suite."""

import os
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
# Ray would replace `print` in the whole process
os.environ["RAY_TQDM_PATCH_PRINT"] = "0"

import pytest
import torch

from cryptomnesia import calibrate
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion

torch.set_num_threads(1)  # miniatures gain nothing from more, and a busy machine would stall them


@pytest.fixture(scope="session")
def pipe():
    """A miniature of Stable Diffusion that no test changes."""
    return stable_diffusion()


@pytest.fixture(scope="session")
def calibration():
    """The calibration of `stable_diffusion()`."""
    return calibrate(stable_diffusion(), PROMPTS, batch_size=34, **CALL)


@pytest.fixture(scope="session")
def audit_folder(tmp_path_factory):
    """A miniature model, its references and some prompts."""
    folder = tmp_path_factory.mktemp("audit")
    stable_diffusion().save_pretrained(folder / "tiny")
    (folder / "references.txt").write_text("\n".join(f"a red circle {number}" for number in range(102)))
    (folder / "prompts.txt").write_text("a blue star\na green ring\na blue star\na red bar\n")
    return folder


@pytest.fixture(scope="session")
def audited(audit_folder):
    """A finished run of two images per prompt."""
    from cryptomnesia import audit
    from tiny_audit import settings

    return audit(**settings(audit_folder, images_per_prompt=2), output=audit_folder / "run")


@pytest.fixture
def cryptomnesia(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""
    from cryptomnesia import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cryptomnesia", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def found(audited):
    """What that run says."""
    from cryptomnesia.auditing.outcome import outcome

    return outcome(audited)


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, without a window; without it the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; the test extra brings it")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium; `apt-get install chromium` brings it")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path):
    """Opens a report, and sees in the end that it said nothing to the console and asked for nothing but itself.

    Files of its folder that it may ask for are named by their paths in `beside`.
    """
    file = tmp_path / "report.html"
    heard, contexts, allowed = [], [], set()

    def asked(request):
        if not request.url.startswith("data:") and request.url not in allowed:
            heard.append(request.url)

    def opened(text, fragment="", beside=(), **options):
        file.write_text(text, encoding="utf-8")
        allowed.update(path.as_uri() for path in beside)
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", asked)
        page.goto(file.as_uri() + fragment)
        assert heard.pop(0).partition("#")[0] == file.as_uri()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []
