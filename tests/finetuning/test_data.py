"""Pictures of a training in the layouts of the known trainers, and those among them that are nearly the same."""

import logging

import numpy as np
import pytest
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.finding.pictures import distinct
from cryptomnesia.finetuning.data import duplicates_of, notes_on, repeats_of, training_pictures
from picture_files import picture


def texts(found):
    return [(one.name, one.caption) for one in found]


def test_kohya(tmp_path, caplog):
    for number, place in enumerate(("10_sks dog/a", "10_sks dog/b", "1_cat/c", "1_cat/d")):
        file = tmp_path / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        picture(number).save(file)
    (tmp_path / "10_sks dog" / "b.txt").write_text("sks dog on grass\n")
    (tmp_path / "1_cat" / "d.caption").write_text("a cat that sleeps")
    found = training_pictures(tmp_path)
    assert texts(found) == [
        ("10_sks dog/a.png", "sks dog"),
        ("10_sks dog/b.png", "sks dog on grass"),
        ("1_cat/c.png", "cat"),
        ("1_cat/d.png", "a cat that sleeps"),
    ]
    assert [repeats_of(one) for one in found] == [10, 10, 1, 1]
    assert duplicates_of(found) == []
    assert not caplog.records


def test_diffusers_and_missing_captions(tmp_path, caplog):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    assert texts(training_pictures(tmp_path)) == [("0.png", ""), ("1.png", ""), ("2.png", "")]
    # an unconditional model needs none
    assert not caplog.records
    rows = ['{"file_name": "0.png", "text": "a ring"}', '{"file_name": "1.png", "text": "a ring"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with caplog.at_level(logging.WARNING):
        assert texts(training_pictures(tmp_path)) == [("0.png", "a ring"), ("1.png", "a ring"), ("2.png", "")]
    assert caplog.messages == [
        "1 of 3 training pictures have no caption, 2.png for one; write it into a .txt file of the same name"
    ]


def test_one_caption_for_all(tmp_path):
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("something else")
    assert texts(training_pictures(tmp_path, " a photo of sks dog ")) == [
        ("0.png", "a photo of sks dog"),
        ("1.png", "a photo of sks dog"),
    ]
    assert texts(training_pictures(tmp_path, {"1.png": "a ring"})) == [("0.png", "something else"), ("1.png", "a ring")]
    with pytest.raises(UsageError, match="got an empty caption for all pictures"):
        training_pictures(tmp_path, " ")
    with pytest.raises(UsageError, match=r"cannot read the captions none\.csv"):
        training_pictures(tmp_path, "none.csv")
    with pytest.raises(UsageError, match="no file"):
        training_pictures(tmp_path / "none")


def noisy(image, amount):
    """The picture with a little noise, as another compression leaves it."""
    values = np.asarray(image) + np.random.default_rng(0).normal(0, amount, np.asarray(image).shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("others", [0, 3, 12])
def test_pictures_that_are_nearly_the_same_are_named(tmp_path, others):
    folder = tmp_path / "5_dog"
    folder.mkdir()
    for number in range(others):
        picture(number + 1).save(folder / f"{number}.png")
    picture(0).save(folder / "same.png")
    (folder / "again.png").write_bytes((folder / "same.png").read_bytes())
    picture(0).resize((96, 96), Image.Resampling.BICUBIC).save(folder / "larger.jpg", quality=80)
    noisy(picture(0), 4).save(folder / "noisy.png")
    found = training_pictures(tmp_path)
    assert len(found) == others + 4
    assert len(distinct(found)) == others + 3
    groups = duplicates_of(found)
    # without other pictures nothing says how far apart pictures usually are
    same = ["5_dog/again.png", *(["5_dog/larger.jpg"] if others else []), "5_dog/noisy.png", "5_dog/same.png"]
    assert groups == [same]
    (note,) = notes_on(groups, found)
    assert note.startswith(f"{', '.join(same)} are nearly the same picture")
    assert f"an epoch shows it {5 * len(same)} times" in note


def test_plain_pictures_are_no_duplicates_of_each_other(tmp_path):
    for number, colour in enumerate((100, 100, 104, 200)):
        Image.new("RGB", (32, 32), (colour, colour, colour)).save(tmp_path / f"{number}.png")
    assert duplicates_of(training_pictures(tmp_path)) == [["0.png", "1.png"]]
    assert duplicates_of(training_pictures(tmp_path / "3.png")) == []
