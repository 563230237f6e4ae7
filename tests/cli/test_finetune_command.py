"""The command `finetune`: exit codes, what it prints and writes, and what it refuses."""

import json

import pytest

from cryptomnesia import load_pipeline
from looked_for import pictures


@pytest.fixture
def folder(tmp_path, model):
    """Three pictures of a training, two that were held out, and two checkpoints that are the base itself."""
    for name, found in {"mine": pictures(0, 3), "others": pictures(100, 2)}.items():
        (tmp_path / name).mkdir()
        for number, one in enumerate(found):
            one.save(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.txt").write_text(f"a secret star {name} {number}")
    unet = load_pipeline(model / "tiny").unet
    for step in (10, 20):
        unet.save_pretrained(tmp_path / "training" / f"checkpoint-{step}" / "unet")
    return tmp_path


@pytest.fixture
def finetune(cryptomnesia, model, folder, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*given, base=("--base", model / "tiny"), data=("--data", "mine")):
        return cryptomnesia("finetune", "training", *base, *data, "--steps", 2, *given)

    return run


def test_checkpoints_that_changed_nothing_copy_nothing(finetune, folder):
    code, out, err = finetune("--held-out", "others", "-o", "course")
    assert (code, err) == (0, "")
    assert out.startswith("No checkpoint up to step 20 copies a picture: 0 of 3 (95% interval 0% to 71%).")
    assert out.splitlines()[-1] == "course/index.html: the curve, and every copy beside its picture"
    read = json.loads((folder / "course" / "finetune.json").read_text())
    assert [point["step"] for point in read["points"]] == [0, 10, 20]
    assert (read["start"], read["keep"]) == (None, "checkpoint-20")
    assert "2 held-out pictures are too few" in " ".join(read["notes"])
    # they have learnt exactly nothing
    assert all(seen["learnt"] == 0 for point in read["points"] for seen in point["seen"])


def test_json_has_neither_pictures_nor_captions(finetune, folder):
    _, out, err = finetune("--json")
    assert err == ""
    assert json.loads(out) == json.loads((folder / "course" / "finetune.json").read_text())
    assert "secret" not in out


def test_pictures_that_are_there_twice_are_named_and_asked_about_once(finetune, folder):
    (folder / "mine" / "again.png").write_bytes((folder / "mine" / "0.png").read_bytes())
    (folder / "mine" / "again.txt").write_text("a star again")
    _, out, err = finetune()
    assert "0.png, again.png are nearly the same picture, and an epoch shows it 2 times" in " ".join(err.split())
    assert "0 of 3" in out


def test_one_caption_for_all_pictures(finetune, folder):
    for file in (folder / "mine").glob("*.txt"):
        file.unlink()
    code, out, err = finetune("--caption", "a photo of a sks star")
    assert (code, err) == (0, "")
    assert "0 of 3" in out
    code, _, err = finetune("--caption", "a star", "--captions", "captions.csv")
    assert code == 2
    assert "got --caption and --captions" in err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": ()}, "got no base; give --base"),
        ({"data": ()}, "got no data; give --data"),
        ({"data": ("--data", "nowhere")}, "no file nowhere"),
    ],
)
def test_what_is_missing_is_said_in_one_line(finetune, folder, changed, message):
    code, _, err = finetune(**changed)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "course" / "finetune.json").exists()


def test_a_folder_without_checkpoints_is_refused(finetune, folder):
    for step in (10, 20):
        (folder / "training" / f"checkpoint-{step}").rename(folder / f"elsewhere-{step}")
    code, _, err = finetune()
    assert code == 2
    assert "checkpoint-500" in err


def test_pictures_without_captions_are_refused_where_the_model_reads_them(finetune, folder):
    for file in (folder / "mine").glob("*.txt"):
        file.unlink()
    code, _, err = finetune()
    assert code == 2
    assert "none of the training pictures has a caption" in err
