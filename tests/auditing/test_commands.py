import json
import shutil

import pytest

from cryptomnesia.matching.building import FORMAT

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
    return [
        folder / "tiny",
        *("--steps", 3, "--guidance", 2, "--fpr", 0.5),
        *("--calibration", folder / "run" / "calibration.safetensors"),
    ]


def test_hostile_prompts_are_judged_and_shown_as_they_are(cryptomnesia, audit_folder, audited, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(HOSTILE), encoding="utf-8")
    code, out, err = cryptomnesia(
        "audit", *flags(audit_folder), "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "run"
    )
    assert code in (1, 3), err
    assert all(prompt.split()[0] in out for prompt in HOSTILE[:-1])
    assert "\x1b]" not in out
    assert "\x1b[2J" not in out
    for kind in ("html", "json", "sarif", "card", "answers"):
        code, out, _ = cryptomnesia("report", tmp_path / "run", "--format", kind, "-o", tmp_path / kind)
        assert code == 0
        assert "<script>alert(1)" not in (tmp_path / kind).read_text(encoding="utf-8") or kind in ("json", "sarif")
    shown = json.loads((tmp_path / "json").read_text(encoding="utf-8"))
    assert {judged["prompt"] for judged in shown["prompts"]} == set(HOSTILE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a caf\xe9\n", "is not UTF-8 (byte 5); save it as UTF-8"),
        (b" \n\n", "holds no prompt; give at least one"),
    ],
)
def test_prompts_that_cannot_be_used_are_one_line(cryptomnesia, audit_folder, audited, tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    code, _, err = cryptomnesia(
        "audit", *flags(audit_folder), "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "run"
    )
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_run_of_a_newer_version_is_refused(cryptomnesia, run):
    held = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**held, "format": 3}))
    for command in (["report", run], ["rescore", run], ["compare", run, run]):
        code, _, err = cryptomnesia(*command)
        assert code == 2
        assert "has run format 3, this version reads 2; update cryptomnesia" in err


def test_a_run_of_an_older_version_is_refused_with_what_to_do(cryptomnesia, run):
    held = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**held, "format": 1}))
    for command in (["report", run], ["rescore", run], ["compare", run, run]):
        code, _, err = cryptomnesia(*command)
        assert code == 2
        assert "has run format 1, this version reads 2; audit again into another folder" in err
        assert err.count("\n") == 1


def test_a_run_can_be_reported_under_another_gate_and_into_a_file(cryptomnesia, run, tmp_path):
    gate = json.loads(cryptomnesia("report", run, "--format", "json")[1])["gate"]
    code, out, _ = cryptomnesia("report", run, "--format", "json", "--fail-on", "suspected", "--max-rate", 0.9)
    other = json.loads(out)["gate"]
    assert code == 0
    assert (other["fail_on"], other["limit"]) == ("suspected", 0.9)
    assert (gate["fail_on"], gate["limit"]) == ("corroborated", 0)
    code, _, err = cryptomnesia("report", run, "--fail-on", "confirmed")
    assert (code, "confirmed' without training images, which alone can confirm; give index or" in err) == (2, True)
    assert cryptomnesia("report", run, "-o", tmp_path / "table.txt")[0] == 0
    assert "a green ring" in (tmp_path / "table.txt").read_text(encoding="utf-8")
    # the suffix tells the format unless that is given
    assert cryptomnesia("report", run, "-o", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert cryptomnesia("report", run, "-o", tmp_path / "run.json")[0] == 0
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["gate"] == gate


def test_a_run_is_reported_rescored_and_compared(cryptomnesia, run, audited):
    code, out, _ = cryptomnesia("report", run)
    assert code == 0
    assert "a green ring" in out
    code, out, _ = cryptomnesia("rescore", run, "--detector", "stability", "--fpr", 0.3)
    assert code == 0
    assert "stability, suspected at p ≤ 0.3" in out
    code, out, _ = cryptomnesia("compare", audited.folder, run, "--fail-on", "suspected")
    assert code in (0, 1)
    assert "before," in out
    code, _, err = cryptomnesia("compare", run, run, "--fail-on", "tarot")
    assert (code, "unknown level 'tarot'" in err) == (2, True)
    code, _, err = cryptomnesia("report", run, "--format", "tarot")
    assert (code, "unknown format 'tarot'" in err) == (2, True)


def test_a_run_with_training_images_whose_index_is_of_another_descriptor(cryptomnesia, audit_folder, audited, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    (index / "index.json").write_text(
        json.dumps({"format": FORMAT, "descriptor": "another", "source": "", "complete": True})
    )
    code, _, err = cryptomnesia(
        "audit",
        *flags(audit_folder),
        *("--prompts", audit_folder / "prompts.txt", "--index", index, "-o", tmp_path / "run"),
    )
    assert code == 2
    assert "was built with the descriptor another" in err


def test_a_rate_of_zero_is_refused(cryptomnesia, run):
    before = cryptomnesia("report", run)[1]
    code, out, err = cryptomnesia("rescore", run, "--fpr", 0)
    assert (code, out, err) == (2, "", "error: got the false-positive rate 0; give one between 0 and 1\n")
    assert cryptomnesia("report", run)[1] == before
    gate = json.loads(cryptomnesia("report", run, "--format", "json", "--max-rate", 0)[1])["gate"]
    assert gate["limit"] == 0
    code, _, err = cryptomnesia("report", run, "--fail-on", "")
    assert (code, "got fail_on = ''" in err) == (2, True)


def test_a_detector_that_reads_what_is_not_stored_is_refused_with_what_it_costs(cryptomnesia, run):
    code, _, err = cryptomnesia("rescore", run, "--detector", "curvature")
    assert code == 2
    assert (
        "the run stored no curvature, which curvature reads; audit again with --detector curvature: 102 references "
        "and 6 images × 3 evaluations" in err
    )


def test_an_audit_says_its_cost_and_its_outcome(cryptomnesia, audit_folder, audited, tmp_path):
    given = [*flags(audit_folder), "--prompts", audit_folder / "prompts.txt", "-o", tmp_path / "run"]
    code, out, _ = cryptomnesia("audit", *given, "--no-mitigate", "--dry-run")
    assert code == 0
    assert out.startswith("3 images and 0 references: 9 denoiser evaluations, about 0 s on this machine")
    assert not (tmp_path / "run").exists()
    code, out, err = cryptomnesia("audit", *given, "--no-mitigate", "--json")
    assert code in (1, 3), err
    assert json.loads(out)["about"]["methods"] == {
        "detector": "early-detail",
        "localizer": "settled-detail",
        "mitigation": None,
    }


def test_a_report_that_cannot_be_written_leaves_the_old_one(cryptomnesia, run, tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    file.write_text("the old report")

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    code, out, err = cryptomnesia("report", run, "--format", "html", "-o", file)
    monkeypatch.undo()
    assert (code, out, err) == (2, "", f"error: cannot write {file} (No space left on device); give another place\n")
    assert file.read_text() == "the old report"
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training-images", "."], "got --training-images without --embed-images; give both, or leave it out"),
        (
            ["--format", "html", "--embed-images", "--training-images", "nosuch"],
            "no folder or file nosuch; give the folder of the training images, a tar shard, a table or a picture",
        ),
        (["--embed-images"], "got --embed-images for the format table; give --format html, or leave it out"),
        (
            ["--format", "html", "--embed-images", "--training-images", "."],
            "got --training-images, and the run was compared with none; leave it out",
        ),
    ],
)
def test_options_that_a_report_would_not_use_are_refused(cryptomnesia, audited, options, message):
    assert cryptomnesia("report", audited.folder, *options) == (2, "", f"error: {message}\n")


def test_a_file_in_the_way_of_a_run_is_named_before_anything_is_loaded(cryptomnesia, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "prompts.txt").write_text("a red circle")
    code, out, err = cryptomnesia("audit", "nowhere", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "file")
    assert (code, out) == (2, "")
    assert err == f"error: cannot write to {tmp_path / 'file'}: {tmp_path / 'file'} is a file; give another folder\n"
