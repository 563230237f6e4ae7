import json
from pathlib import Path

import pytest
from PIL import Image

from cryptomnesia.proving_ground import BUNDLE


def test_show_draws_the_grid(cryptomnesia, monkeypatch, tmp_path):
    monkeypatch.setattr("cryptomnesia.proving_ground.show._GENERATIONS", 1)
    code, _, _ = cryptomnesia("proving-ground", "show", "scenes", "-o", tmp_path / "new" / "grid")
    assert code == 0
    with Image.open(tmp_path / "new" / "grid") as sheet:
        assert sheet.format == "PNG"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid"]


def test_training_images_are_written(cryptomnesia, tmp_path):
    code, out, err = cryptomnesia("proving-ground", "images", "scenes", tmp_path / "images", "--others", 2)
    assert (code, out, err) == (0, f"{tmp_path / 'images'}\n", "")
    assert len(list((tmp_path / "images").glob("000*.png"))) == 2


def test_grounds_are_listed(cryptomnesia):
    code, out, err = cryptomnesia("proving-ground", "list")
    assert (code, err) == (0, "")
    (scenes,) = [line for line in out.splitlines() if line.startswith("scenes ")]
    assert "does not come with the package" not in scenes
    assert any(line.startswith("drawings-lora ") and "does not come" in line for line in out.splitlines())


def test_training_images_of_a_fine_tune_are_those_of_its_settings(cryptomnesia, tmp_path):
    command = ("proving-ground", "images", "scenes-full", tmp_path, "--others", 0, "--pictures", 2, "--exposures", 4)
    code, _, _ = cryptomnesia(*command)
    assert code == 0
    assert {path.stem for path in tmp_path.glob("*-4-*.png")} >= {"tuned-plain-4-0", "tuned-named-4-1"}
    assert not [*tmp_path.glob("verbatim-*-300-*.png")]


@pytest.mark.parametrize("command", ["train", "verify", "show", "images"])
def test_an_unknown_ground_is_refused_in_one_line(cryptomnesia, tmp_path, command):
    more = {
        "train": [tmp_path / "run"],
        "verify": [],
        "show": ["-o", tmp_path / "grid.png"],
        "images": [tmp_path / "x"],
    }
    code, out, err = cryptomnesia("proving-ground", command, "tarot", *more[command])
    assert (code, out) == (2, "")
    assert err.startswith("error: no proving ground is called tarot; there are drawings, ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["verify"], ["show", "-o", "grid.png"]])
def test_a_model_of_another_ground_or_none_is_refused(cryptomnesia, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    given = "--bundle", BUNDLE
    code, out, err = cryptomnesia("proving-ground", command[0], "pixels", *command[1:], *given)
    assert (code, out) == (2, "")
    assert err == f"error: {BUNDLE} is a model of scenes; give one of pixels, or name the ground scenes\n"
    code, _, err = cryptomnesia("proving-ground", command[0], "scenes-lora", *command[1:])
    assert code == 2
    assert "the model of scenes-lora does not come with the package; make it with `cryptomnesia" in err
    code, _, err = cryptomnesia("proving-ground", command[0], "scenes", *command[1:], "--bundle", tmp_path / "nowhere")
    assert code == 2
    assert "no manifest" in err
    assert list(tmp_path.iterdir()) == []


def test_measures_are_printed_as_lines_and_as_json(cryptomnesia, monkeypatch):
    share = {"value": 0.5, "low": 0.25, "high": 0.75}
    verified = []

    def verify(folder, *, checkpoint, write, progress):
        verified.append((folder.name, checkpoint, write))
        return {"verbatim_replicated": share, "seeds": 8}

    monkeypatch.setattr("cryptomnesia.proving_ground.verify.verify", verify)
    code, out, _ = cryptomnesia("proving-ground", "verify", "scenes", "--write")
    assert code == 0
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["verbatim_replicated", "0.500 (0.250 to 0.750)"],
        ["seeds", "8"],
    ]
    code, out, _ = cryptomnesia("proving-ground", "verify", "scenes", "--json")
    assert json.loads(out) == {"verbatim_replicated": share, "seeds": 8}
    cryptomnesia("proving-ground", "verify", "scenes", "--checkpoint", "run/step-9")
    assert verified == [("scenes", None, True), ("scenes", None, False), ("scenes", Path("run/step-9"), False)]


def test_more_training_images_than_anybody_needs_are_refused(cryptomnesia, tmp_path):
    code, _, err = cryptomnesia("proving-ground", "images", "scenes", tmp_path / "images", "--others", 10**23)
    assert (code, err.count("\n")) == (2, 1)
    assert "1000000" in err
    assert not (tmp_path / "images").exists()
