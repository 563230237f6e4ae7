import json

import numpy as np
import pytest
from PIL import Image

from cryptomnesia.matching import ImageIndex, Tiles
from cryptomnesia.matching.matched import match


def picture(seed):
    """A smooth random picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((48, 48), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of 160 training images."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "images").mkdir()
    for number in range(160):
        picture(number).save(folder / "images" / f"{number:03}.png")
    ImageIndex.build(folder / "images", folder / "index", Tiles())
    return folder / "index"


@pytest.fixture
def generated(tmp_path):
    """A folder with a copy of a training image, another picture, and one that cannot be read."""
    folder = tmp_path / "generated"
    (folder / "deep").mkdir(parents=True)
    picture(17).save(folder / "copy.png")
    picture(1000).save(folder / "deep" / "other.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_copy_is_found_in_a_folder(cryptomnesia, index, generated):
    code, out, err = cryptomnesia("match", generated, "--index", index, "--json")
    assert (code, err) == (1, "")
    printed = json.loads(out)
    assert (printed["index"], printed["fpr"], printed["skipped"]) == (str(index), 0.01, {})
    copy, other = printed["pictures"]
    assert (copy["picture"], copy["training_image"]) == (str(generated / "copy.png"), "017.png")
    assert copy["reproduced"]
    assert other["picture"] == str(generated / "deep" / "other.png")
    assert not other["reproduced"]
    found = match([row["picture"] for row in printed["pictures"]], index)
    for row, expected in zip(printed["pictures"], found, strict=True):
        assert (row["training_image"], row["p_value"]) == (expected.path, expected.p_value)
        assert row["distance"] == pytest.approx(expected.distance)


def test_the_table_names_the_training_image(cryptomnesia, index, generated):
    code, out, err = cryptomnesia("match", generated / "copy.png", generated / "deep", "--index", index, "--fpr", 0.05)
    assert (code, err) == (1, "")
    assert "nearest training images, reproduced at p ≤ 0.05" in out
    assert "017.png" in out
    assert out.count("reproduced │") == 1
    assert out.count("no match") == 1


def test_nothing_reproduced_is_exit_code_0_and_what_cannot_be_read_is_3(cryptomnesia, index, generated):
    code, _, err = cryptomnesia("match", generated / "deep", "--index", index)
    assert (code, err) == (0, "")
    broken = generated / "deep" / "broken.png"
    broken.write_text("not a picture")
    code, out, err = cryptomnesia("match", generated / "deep", "--index", index, "--json")
    assert code == 3
    assert err.startswith(f"skipped {broken}: UnidentifiedImageError")
    assert err.count("\n") == 1
    assert list(json.loads(out)["skipped"]) == [str(broken)]
    code, out, err = cryptomnesia("match", broken, "--index", index)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {broken} is no picture that can be read (UnidentifiedImageError")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index", "INDEX"], "got no images; give the argument images"),
        (["GENERATED"], "got no index; give --index, the key index in a --config file"),
        (["GENERATED", "--index", "nowhere"], "no index in nowhere; make one with `cryptomnesia index build`"),
        (["nowhere.png", "--index", "INDEX"], "no file nowhere.png; give the path of a picture"),
        (["EMPTY", "--index", "INDEX"], "no pictures in"),
        (["GENERATED", "--index", "INDEX", "--fpr", "0"], "got fpr = 0.0, expected to be greater than 0"),
        (["GENERATED", "--index", "INDEX", "--fpr", "0.001"], "the index holds 160 pictures, too few"),
        (["GENERATED", "--index", "INDEX", "--sscd", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_match_explains_what_it_cannot_do(cryptomnesia, index, generated, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"INDEX": index, "GENERATED": generated, "EMPTY": tmp_path / "empty"}
    code, out, err = cryptomnesia("match", *[names.get(argument, argument) for argument in arguments])
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
