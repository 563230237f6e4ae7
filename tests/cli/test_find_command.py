"""The command `find`: exit codes, and what it prints and writes."""

import json

import numpy as np
import pytest

from cryptomnesia import Answer, Found
from cryptomnesia.finding import verb, work
from cryptomnesia.settings import FindSettings
from looked_for import pictures


@pytest.fixture
def folder(tmp_path, model):
    """Two pictures and four controls with captions beside them, and a file that is no picture."""
    for name, found in {"images": pictures(0, 2), "controls": pictures(100, 4)}.items():
        (tmp_path / name).mkdir()
        rows = ["file_name,text"]
        for number, one in enumerate(found):
            one.save(tmp_path / name / f"{number}.png")
            rows.append(f"{number}.png,a secret star")
        (tmp_path / name / "metadata.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.fixture
def find(cryptomnesia, model, folder, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*given, controls=("--controls", "controls"), images=("images",)):
        return cryptomnesia("find", model / "tiny", *images, *controls, "--steps", 2, "--alpha", 0.2, *given)

    return run


def test_the_answers_are_printed_and_written(find, folder):
    code, out, err = find("-o", "found")
    assert code in (0, 1)
    assert err == ""
    assert out.startswith("4 controls, retained at p ≤ 0.2, smallest p 0.2")
    assert "0.png" in out
    assert "not evidenced: The model treats the picture like the controls" in " ".join(out.split())
    assert out.splitlines()[-1] == "found/index.html: a page for every picture"
    read = json.loads((folder / "found" / "found.json").read_text())
    assert code == int(read["counts"]["retained"] + read["counts"]["reproducible"] > 0)
    assert len(list((folder / "found").glob("picture-*.html"))) == 2


def test_json_has_neither_pictures_nor_captions(find, folder):
    _, out, err = find("--json")

    def refused(name):
        raise AssertionError(name)

    printed = json.loads(out, parse_constant=refused)
    assert err == ""
    assert printed == json.loads((folder / "found" / "found.json").read_text())
    assert [one["caption"] for one in printed["pictures"]] == [len("a secret star")] * 2
    assert "secret" not in out
    assert "thumbnails" not in printed
    assert printed["about"]["model"].endswith("tiny")


def test_without_controls_the_exit_code_is_3(find):
    code, out, err = find(controls=())
    assert code == 3
    assert "undecided" in out
    assert err.startswith("warning: without controls nothing can be decided")


def answer(verdict):
    empty = np.zeros((2, 2))
    return Answer("a.png", "0" * 64, "", verdict, 0.5, {}, {}, "", "whole", 1.0, 0.0, 1.0, 0.0, empty, empty > 0, {})


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["not evidenced"], 0),
        (["not evidenced", "retained"], 1),
        (["reproducible", "undecided"], 1),
        (["not evidenced", "undecided"], 3),
    ],
)
def test_exit_codes_say_what_was_found(find, monkeypatch, verdicts, code):
    found = Found({"model": "m", "versions": {}}, [answer(one) for one in verdicts], [1.0], 4, {}, 0.2, 0.2, 0.2)
    monkeypatch.setattr(verb, "find", lambda *_, **__: found)
    assert find("--json")[0] == code
    found_code, out, _ = find()
    assert found_code == code
    assert all(one in out for one in verdicts)


@pytest.mark.parametrize(
    ("given", "images", "message"),
    [
        ((), (), "error: got no images; give the argument images"),
        ((), ("none.png",), "error: no file none.png; give the path of a picture, or a folder of pictures"),
        (
            ("--alpha", "0.1"),
            ("images",),
            "error: got 4 controls, and a rate of 0.1 needs at least 9; give more, or an",
        ),
        (("--alpha", "0"), ("images",), "error: got alpha = 0.0, expected to be greater than 0"),
        (("--captions", "none.csv"), ("images",), "none.csv"),
        (("--workers", "0"), ("images",), "Invalid value for '--workers'"),
        (("-o", "images/0.png"), ("images",), "images/0.png"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2(find, given, images, message):
    code, out, err = find(*given, images=images)
    assert (code, out) == (2, "")
    assert message in err


def test_a_file_that_cannot_be_read_is_skipped(find, folder):
    (folder / "controls" / "broken.png").write_text("no picture")
    code, _, err = find("--json")
    assert code in (0, 1)
    assert err.startswith("warning: skipped controls/broken.png: no picture of a format that is read")
    assert err.count("\n") == 1


def test_a_search_with_other_settings_in_the_same_folder_is_refused(find):
    find("-o", "found")
    code, out, err = find("-o", "found", "--seed", 1)
    assert (code, out) == (2, "")
    assert "holds a search with other settings" in err
    assert "differs in seed" in err


def test_pictures_are_shown_only_if_that_is_asked_for(find, folder, monkeypatch):
    # everything is looked at more closely
    monkeypatch.setattr(work, "CLOSE", 5.0)
    find("-o", "without")
    find("-o", "with", "--thumbnails")
    for name in (path.name for path in (folder / "without").glob("picture-*.html")):
        without, shown = ((folder / one / name).read_text(encoding="utf-8") for one in ("without", "with"))
        # the map, the mask and the map of the critical scale
        assert without.count("<img") == 3
        assert "not kept" in without
        assert "Pictures are kept with <code>--thumbnails</code> only" in without
        # the picture itself, and what comes back of it
        assert shown.count("<img") == shown.count("<figure")
        assert shown.count("<img") >= 5
        assert "not kept" not in shown


def test_the_help_names_every_setting(cryptomnesia, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = cryptomnesia("find", "--help")
    assert code == 0
    for name in FindSettings.model_fields:
        wanted = name if name in ("model", "images") else f"--{name.replace('_', '-')}"
        assert wanted in out, name
    assert all(FindSettings.model_fields[name].description for name in FindSettings.model_fields)


def test_a_picture_by_its_own_path_is_looked_for(find):
    code, out, _ = find("--json", images=("images/1.png",))
    assert code in (0, 1)
    assert [one["name"] for one in json.loads(out)["pictures"]] == ["1.png"]
