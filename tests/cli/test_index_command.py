from PIL import Image


def test_index_build_counts_pictures_and_names_what_it_skips(cryptomnesia, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8), "red").save(images / "red.png")
    (images / "broken.png").write_text("not a picture")
    code, out, err = cryptomnesia("index", "build", images, "-o", tmp_path / "index")
    assert code == 0
    assert "1 pictures by tiles, 32 pixels, 4 across" in out
    assert "skipped broken.png: UnidentifiedImageError" in err
    code, _, err = cryptomnesia("index", "build", tmp_path / "index", "-o", tmp_path / "other")
    assert code == 2
    assert "no pictures in" in err


def test_what_is_needed_is_named(cryptomnesia, tmp_path):
    code, out, err = cryptomnesia("index", "build", "-o", tmp_path / "index")
    assert (code, out) == (2, "")
    assert err.startswith("error: got no images; give the argument images, the key images in a --config file, or ")
    code, out, err = cryptomnesia("index", "build", tmp_path / "nowhere", "-o", tmp_path / "index")
    assert (code, out) == (2, "")
    assert "no folder" in err
    assert not (tmp_path / "index").exists()


def test_a_file_in_the_way_of_an_index_is_not_a_full_disk(cryptomnesia, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8), "red").save(images / "red.png")
    file = tmp_path / "file"
    file.write_text("here before")
    code, out, err = cryptomnesia("index", "build", images, "-o", file)
    assert (code, out) == (2, "")
    assert err == f"error: cannot write the index {file}: File exists; a file is in the way; give another name\n"
    assert file.read_text() == "here before"


def test_a_device_that_is_not_there_is_refused_though_tiles_do_not_use_it(cryptomnesia, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    code, out, err = cryptomnesia("index", "build", tmp_path, "-o", tmp_path / "index", "--device", "nonsense")
    assert (code, out) == (2, "")
    assert err.startswith("error: got device 'nonsense', which cannot be used")
    assert err.count("\n") == 1
