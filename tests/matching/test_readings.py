"""Pictures that can be read in several ways: each reading is found, and all of them count as one picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import ImageIndex, UsageError, match
from cryptomnesia.matching import Readings, Tiles
from cryptomnesia.matching.reproduction import check_size
from picture_files import encoded, picture

PICTURES = 40


def rotated(seed):
    """A JPEG file whose camera was held on its side, and the picture as it lies in the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(seed), "JPEG", quality=95, exif=exif), picture(seed)


def clear(seed):
    """A picture half of which is transparent."""
    image = picture(seed).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.fixture
def images(tmp_path):
    """Forty pictures: usual ones, and from number 30 on rotated, from 35 on transparent ones."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(PICTURES):
        content = encoded(picture(number))
        if number >= 30:
            content = rotated(number)[0] if number < 35 else encoded(clear(number))
        (folder / f"{number:02}.png").write_bytes(content)
    return folder


def test_every_reading_is_found_and_named(images, tmp_path):
    index = ImageIndex.build(images, tmp_path / "index")
    assert len(index) == PICTURES
    assert len(index.paths) == 30 + 5 * 2 + 5 * 3
    raw = picture(31)
    shown = raw.transpose(Image.Transpose.ROTATE_270)
    black = Image.alpha_composite(Image.new("RGBA", (48, 48), "black"), clear(36)).convert("RGB")
    dropped = clear(36).convert("RGB")
    found = match([raw, shown, black, dropped, picture(3), picture(99)], index, fpr=0.05)
    assert found.paths[:5] == ["31.png", "31.png", "36.png", "36.png", "03.png"]
    assert found.readings[:5] == ["not rotated", "rotated by EXIF", "alpha on black", "alpha dropped", ""]
    assert found.reproduced.tolist() == [True] * 5 + [False]
    # the file itself is read as a viewer shows it
    (by_file,) = match([images / "31.png"], index, fpr=0.05)
    assert (by_file.path, by_file.reading, by_file.reproduced) == ("31.png", "rotated by EXIF", True)


def test_the_reading_of_the_trainer_is_the_only_one(images, tmp_path):
    index = ImageIndex.build(images, tmp_path / "index", readings=Readings("ignore", "drop"))
    assert len(index.paths) == PICTURES
    found = match([picture(31), picture(31).transpose(Image.Transpose.ROTATE_270)], index, fpr=0.05)
    assert found.reproduced.tolist() == [True, False]
    assert found.readings == ["", ""]


def test_more_readings_change_no_value_of_another_picture(tmp_path):
    """A second reading far from everything is no neighbour: distances and p-values stay those of plain files."""
    values = []
    for kind in ("plain", "rotated"):
        folder = tmp_path / kind
        folder.mkdir()
        for number in range(PICTURES):
            content = rotated(number)[0] if kind == "rotated" else encoded(picture(number), "JPEG", quality=95)
            (folder / f"{number:02}.jpg").write_bytes(content)
        readings = Readings("both" if kind == "rotated" else "ignore")
        index = ImageIndex.build(folder, tmp_path / f"index-{kind}", readings=readings)
        values.append(index)
    plain, both = values
    assert (len(plain), len(both), len(both.paths)) == (PICTURES, PICTURES, 2 * PICTURES)
    queries = [picture(number) for number in range(5)]
    one, two = (index.match(queries, fpr=0.05) for index in (plain, both))
    assert one.paths == two.paths
    torch.testing.assert_close(one.distances, two.distances, atol=2e-3, rtol=0)
    assert one.reproduced.all()
    assert two.reproduced.all()
    # the usual distance is that of 39 other pictures, each at its nearer reading, which is a little less
    assert (one.relative <= two.relative).all()
    assert (two.relative < 1.3 * one.relative).all()


def test_a_symmetrical_picture_is_no_neighbour_of_itself(tmp_path):
    """Both readings of nearly symmetrical pictures are alike. As neighbours they would spoil the usual distance."""
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        half = np.asarray(picture(number)).astype(float)
        values = (half + half[::-1, ::-1]) / 2 + rng.normal(0, 6, half.shape)
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        (folder / f"{number:02}.png").write_bytes(encoded(image, exif=exif))
    index = ImageIndex.build(folder, tmp_path / "index")
    assert len(index.paths) > PICTURES
    # a null of pictures whose own other reading counts would be near to 0, and nothing would be reproduced
    found = index.match([folder_picture(folder, number) for number in range(5)], fpr=0.05)
    assert found.paths == [f"{number:02}.png" for number in range(5)]
    assert found.reproduced.all()


def folder_picture(folder, number):
    with Image.open(folder / f"{number:02}.png") as stored:
        return Image.fromarray(np.asarray(stored))


def test_the_null_under_a_mask_counts_pictures(images, tmp_path):
    index = ImageIndex.build(images, tmp_path / "index")
    query = np.array(picture(32))
    query[:, :24] = np.asarray(picture(77))[:, :24]
    mask = torch.zeros(48, 48)
    mask[:, 24:] = 1
    found = index.match([Image.fromarray(query)], masks=[mask], fpr=0.05)
    assert (found.paths, found.readings, found.reproduced.tolist()) == (["32.png"], ["not rotated"], [True])


def test_the_size_of_an_index_is_that_of_its_pictures(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.jpg").write_bytes(rotated(number)[0])
    index = ImageIndex.build(folder, tmp_path / "index")
    assert len(index.paths) == 40
    check_size(len(index), 0.08)
    with pytest.raises(UsageError, match="holds 20 pictures, too few"):
        match([picture(0)], index, fpr=0.05)


def test_the_command_takes_and_names_readings(images, tmp_path, cryptomnesia):
    code, out, err = cryptomnesia("index", "build", images, "-o", tmp_path / "index", "--alpha", "drop")
    assert (code, err) == (0, "")
    assert "40 pictures by tiles" in out
    picture(31).save(tmp_path / "query.png")
    code, out, _ = cryptomnesia("match", tmp_path / "query.png", "--index", tmp_path / "index", "--fpr", 0.05)
    assert code == 1
    assert "31.png (not rotated)" in out
    code, _, err = cryptomnesia("index", "build", images, "-o", tmp_path / "index", "--exif", "never")
    assert code == 2
    assert "exif" in err


def test_usual_pictures_have_one_reading_and_no_table_of_pictures(images, tmp_path):
    index = ImageIndex.build([picture(number) for number in range(12)], tmp_path / "index", Tiles())
    assert index._search.shards.pictures is None
