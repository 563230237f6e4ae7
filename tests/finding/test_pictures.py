"""Pictures of every kind are read as a viewer shows them, and what cannot be read is named."""

import json
import logging
import pickle
import tarfile
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.finding.pictures import Picture, read_pictures
from cryptomnesia.finding.verb import without_copies
from looked_for import picture


@pytest.fixture
def folder(tmp_path):
    """Three pictures; the first has a caption beside it, and the other two in a file of the folder."""
    for number, name in enumerate(("a", "b", "c")):
        picture(number).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a red ring\n")
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,a blue star\nc.png,\n")
    return tmp_path


def texts(found):
    return {one.name: one.caption for one in found}


def test_captions_beside_the_pictures_are_read(folder):
    assert texts(read_pictures(folder)) == {"a.png": "a red ring", "b.png": "a blue star", "c.png": ""}
    assert texts(read_pictures([folder / "c.png", folder / "a.png"])) == {"c.png": "", "a.png": "a red ring"}
    assert texts(read_pictures(str(folder / "b.png"))) == {"b.png": "a blue star"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_that_are_given_count_more_than_those_beside_the_pictures(folder, tmp_path_factory, kind):
    file = tmp_path_factory.mktemp("captions") / f"texts.{kind}"
    row = {"file_name": "a.png", "text": " a grey bar "}
    file.write_text("file_name,text\na.png, a grey bar \n" if kind == "csv" else json.dumps(row))
    wanted = {"a.png": "a grey bar", "b.png": "a blue star", "c.png": ""}
    assert texts(read_pictures(folder, file)) == wanted
    assert texts(read_pictures(folder, {"somewhere/a.png": "a grey bar"})) == wanted
    assert list(texts(read_pictures(folder, ["x ", "y", "z"])).values()) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("given", "captions", "message"),
    [
        ("none.png", None, r"^no file .*none\.png; give the path of a picture, or a folder of pictures$"),
        ("notes.txt", None, r"^.*notes\.txt is no picture that can be read \(not a picture.*\); give another$"),
        ("empty", None, r"^no pictures in .*empty; give picture files, or a folder of pictures$"),
        (
            "broken.png",
            None,
            r"^.*broken\.png is no picture that can be read \(no picture of a format that is read\); give an",
        ),
        ("cut.png", None, r"^.*cut\.png is no picture that can be read \(OSError: .*truncated.*\); give another$"),
        ("a.png", ["x", "y"], r"^got 2 captions for 1 pictures; give one for each$"),
        ("a.png", [], r"^got 0 captions for 1 pictures; give one for each$"),
        (
            "a.png",
            {"b.png": "x"},
            r"^the captions name none of the pictures, a\.png for one; give the names of the files in file_name$",
        ),
        ("a.png", "none.csv", r"^cannot read the captions none\.csv \(.*\); give a \.csv, \.jsonl or \.parquet file "),
        ("a.png", "a.txt", r"^cannot read the captions a\.txt \(.*\); give a \.csv, \.jsonl or \.parquet file with "),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(folder, monkeypatch, given, captions, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:-40])
    with pytest.raises(UsageError, match=message) as refused:
        read_pictures(folder / given, captions)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given", [np.zeros((4, 4)), torch.zeros(4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), 7, b"", None]
)
def test_objects_that_are_no_pictures_are_refused(given):
    with pytest.raises(
        UsageError, match=r"^got \w+ as picture 0; give a path, a picture of PIL, or an array \(H, W, 3"
    ):
        read_pictures([given])


def test_no_picture_is_refused():
    with pytest.raises(UsageError, match=r"^got no controls; give at least one$"):
        read_pictures([], what="controls")


def test_a_file_of_a_folder_that_cannot_be_read_is_skipped_with_a_warning(folder, caplog):
    (folder / "broken.png").write_text("no picture")
    assert list(texts(read_pictures(folder))) == ["a.png", "b.png", "c.png"]
    [warning] = caplog.messages
    assert warning.startswith(f"skipped {folder / 'broken.png'}: no picture of a format that is read")


def test_the_same_picture_is_looked_for_once(folder, caplog):
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes())
    found = read_pictures([folder / "a.png", folder / "b.png", folder / "d.png", folder / "c.png"])
    assert list(texts(found)) == ["a.png", "b.png", "c.png"]
    assert caplog.messages == ["of 4 pictures some were given more than once; 3 are left"]


def test_pictures_in_memory_are_those_of_the_files(folder):
    shown = picture(0)
    array = np.asarray(shown)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
    given = [shown, array, array / 255, tensor]
    found = [read_pictures(one)[0].fitted(16, 16) for one in given] + [
        read_pictures(folder / "a.png")[0].fitted(16, 16)
    ]
    for one in found:
        np.testing.assert_array_equal(one, array)
    assert [one.name for one in read_pictures([shown, picture(1)])] == ["picture 0", "picture 1"]


def saved(shown, path, **options):
    shown.save(path, **options)
    return read_pictures(path)[0]


def test_pictures_of_other_kinds_are_read_as_a_viewer_shows_them(tmp_path):
    shown = picture(3)
    array = np.asarray(shown)
    grey = shown.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    found = saved(deep, tmp_path / "16bit.png").fitted(16, 16)
    assert np.abs(found.astype(int) - np.asarray(grey)[..., None]).max() <= 1

    clear = np.dstack([array, np.full((16, 16), 255, dtype=np.uint8)])
    clear[:8, :, 3] = 0
    found = saved(Image.fromarray(clear), tmp_path / "rgba.png").fitted(16, 16)
    assert (found[:8] == 255).all()
    np.testing.assert_array_equal(found[8:], array[8:])

    # 6: the camera was turned, and the picture has to be turned by 90° clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    found = saved(shown, tmp_path / "turned.png", exif=exif).fitted(16, 16)
    np.testing.assert_array_equal(found, np.rot90(array, -1))

    for mode in ("L", "P", "1", "CMYK"):
        file = tmp_path / f"{mode}.tiff"
        found = saved(shown.convert(mode), file)
        assert found.fitted(16, 16).shape == (16, 16, 3)
        assert found.notes(16, 16) == []


@pytest.mark.parametrize(
    ("size", "notes"),
    [
        ((16, 16), []),
        ((64, 64), []),
        ((33, 32), []),
        ((64, 32), ["only the middle 50% of the picture is looked at, at 16 × 16 pixels"]),
        ((8, 8), ["the picture is smaller than the model's 16 × 16 pixels and was enlarged"]),
        (
            (8, 24),
            [
                "only the middle 33% of the picture is looked at, at 16 × 16 pixels",
                "the picture is smaller than the model's 16 × 16 pixels and was enlarged",
            ],
        ),
    ],
)
def test_pictures_of_another_size_are_fitted_and_that_is_noted(size, notes):
    [found] = read_pictures(picture(0).resize(size))
    assert found.fitted(16, 16).shape == (16, 16, 3)
    assert found.notes(16, 16) == notes


def test_the_identity_depends_on_picture_and_caption_and_shows_neither():
    one, other = Picture("a", b"content", "a ring"), Picture("b", b"content", "a ring")
    assert one.identity == other.identity
    assert one.identity != Picture("a", b"content", "a star").identity
    assert one.identity != Picture("a", b"contents", "a ring").identity
    assert one.digest not in one.identity


def test_a_picture_in_a_file_is_read_when_it_is_needed_and_has_to_be_the_same(folder):
    one, *_ = read_pictures(folder)
    content = (folder / "a.png").read_bytes()
    copy = pickle.loads(pickle.dumps(one))
    assert len(pickle.dumps(one)) < 1_000
    assert copy == one
    assert copy.digest == sha256(content).hexdigest()
    assert copy.content == one.carried().source == content
    carried = one.carried()
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(UsageError, match=r"^a\.png has changed since the search began; put it back, and go on$"):
        one.fitted(16, 16)
    (folder / "a.png").unlink()
    with pytest.raises(UsageError, match=r"^cannot read a\.png any more \(.*No such file.*\); put it back, and go on$"):
        one.fitted(16, 16)
    assert carried.fitted(16, 16).shape == (16, 16, 3)


def test_a_picture_in_a_shard_is_read_from_there(folder, tmp_path_factory):
    shard = tmp_path_factory.mktemp("shards") / "00.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(folder / "a.png", "a.png")
        tar.add(folder / "a.txt", "a.txt")
    [found] = read_pictures(shard)
    assert not isinstance(found.source, bytes)
    assert (found.name, found.caption) == ("00.tar/a.png", "a red ring")
    np.testing.assert_array_equal(found.fitted(16, 16), np.asarray(picture(0)))


def test_a_control_that_shows_one_of_the_pictures_is_left_out(caplog, tmp_path):
    picture(0).resize((64, 64)).save(tmp_path / "copy.jpg", quality=90)
    controls = read_pictures([picture(5), tmp_path / "copy.jpg", picture(6)])
    with caplog.at_level(logging.WARNING):
        left = without_copies(controls, read_pictures([picture(1), picture(0)]))
    assert [one.name for one in left] == ["picture 0", "picture 2"]
    assert caplog.messages == ["left out the control copy.jpg, which shows the picture picture 1"]
    assert without_copies([], []) == []
