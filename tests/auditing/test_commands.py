import json
import shutil

import pytest

HOSTILE = (
    "</script><script>alert(1)</script>",
    '=HYPERLINK("//x.org",1)',
    "[red]no markup[/] :smile: {{7*7}}",
    "日本 🎨 \u202e reversed",
    "\x1b]0;title\x07 \x1b[2J",
)


@pytest.fixture
def run(audited, tmp_path):
    """A finished run that may be spoiled."""
    return shutil.copytree(audited.folder, tmp_path / "run")


def flags(folder):
    made = {"--calibration": "calibration.safetensors", "--maps": "maps.safetensors"}
    return [
        folder / "tiny",
        *("--steps", 3, "--guidance", 2, "--rate", 0.5),
        *(part for flag, name in made.items() for part in (flag, folder / "run" / name)),
    ]


def test_hostile_prompts_are_judged_and_shown_as_they_are(cryptomnesia, audit_folder, audited, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(HOSTILE), encoding="utf-8")
    code, out, said = cryptomnesia(
        "audit", *flags(audit_folder), "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "run"
    )
    assert code in (1, 3), said
    assert all(prompt.split()[0] in out for prompt in HOSTILE[:-1])
    assert "\x1b]" not in out
    assert "\x1b[2J" not in out
    for kind in ("html", "json", "sarif", "card", "answers"):
        code, out, _ = cryptomnesia("report", tmp_path / "run", "--format", kind, "-o", tmp_path / kind)
        assert code == 0
        assert "<script>alert(1)" not in (tmp_path / kind).read_text(encoding="utf-8") or kind in ("json", "sarif")
    shown = json.loads((tmp_path / "json").read_text(encoding="utf-8"))
    assert {each["prompt"] for each in shown["prompts"]} == set(HOSTILE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a caf\xe9\n", "is not UTF-8 (byte 5); save it as UTF-8"),
        (b"a star " * 1500, "tokens, the model takes"),
        (b" \n\n", "holds no prompt; give at least one"),
    ],
)
def test_prompts_that_cannot_be_used_are_one_line(cryptomnesia, audit_folder, audited, tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    code, _, said = cryptomnesia(
        "audit", *flags(audit_folder), "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "run"
    )
    assert code == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_run_of_a_newer_version_is_refused(cryptomnesia, run):
    held = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**held, "format": 2}))
    for command in (["report", run], ["rescore", run], ["compare", run, run]):
        code, _, said = cryptomnesia(*command)
        assert code == 2
        assert "has run format 2, this version reads up to 1; update cryptomnesia" in said


def test_a_run_can_be_reported_under_another_gate_and_into_a_file(cryptomnesia, run, tmp_path):
    gate = json.loads(cryptomnesia("report", run, "--format", "json")[1])["gate"]
    code, out, _ = cryptomnesia("report", run, "--format", "json", "--fail-on", "suspected", "--max-rate", 0.9)
    other = json.loads(out)["gate"]
    assert code == 0
    assert (other["fail_on"], other["limit"]) == ("suspected", 0.9)
    assert (gate["fail_on"], gate["limit"]) == ("corroborated", 0)
    code, _, said = cryptomnesia("report", run, "--fail-on", "confirmed")
    assert (code, "nothing can be confirmed without training images" in said) == (2, True)
    assert cryptomnesia("report", run, "-o", tmp_path / "table.txt")[0] == 0
    assert "a green ring" in (tmp_path / "table.txt").read_text(encoding="utf-8")


def test_a_run_is_reported_rescored_and_compared(cryptomnesia, run, audited):
    code, out, _ = cryptomnesia("report", run)
    assert code == 0
    assert "a green ring" in out
    code, out, _ = cryptomnesia("rescore", run, "--detector", "stability", "--rate", 0.3)
    assert code == 0
    assert "stability, suspected at p ≤ 0.3" in out
    code, out, _ = cryptomnesia("compare", audited.folder, run, "--fail-on", "suspected")
    assert code in (0, 1)
    assert "before," in out
    code, _, said = cryptomnesia("compare", run, run, "--fail-on", "tarot")
    assert (code, "unknown level 'tarot'" in said) == (2, True)
    code, _, said = cryptomnesia("report", run, "--format", "tarot")
    assert (code, "unknown format 'tarot'" in said) == (2, True)


def test_a_run_with_training_images_whose_index_is_of_another_descriptor(cryptomnesia, audit_folder, audited, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    (index / "index.json").write_text(json.dumps({"format": 1, "descriptor": "another", "complete": True}))
    code, _, said = cryptomnesia(
        "audit",
        *flags(audit_folder),
        *("--prompts", audit_folder / "prompts.txt", "--index", index, "-o", tmp_path / "run"),
    )
    assert code == 2
    assert "was built with the descriptor another" in said
