from PIL import Image


def test_show_draws_the_grid(cryptomnesia, monkeypatch, tmp_path):
    monkeypatch.setattr("cryptomnesia.proving_ground.show._GENERATIONS", 1)
    code, _, _ = cryptomnesia("proving-ground", "show", "-o", tmp_path / "new" / "grid")
    assert code == 0
    with Image.open(tmp_path / "new" / "grid") as sheet:
        assert sheet.format == "PNG"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid"]


def test_training_images_are_written(cryptomnesia, tmp_path):
    code, out, err = cryptomnesia("proving-ground", "images", tmp_path / "images", "--others", 2)
    assert (code, out, err) == (0, f"{tmp_path / 'images'}\n", "")
    assert len(list((tmp_path / "images").glob("000*.png"))) == 2


def test_more_training_images_than_anybody_needs_are_refused(cryptomnesia, tmp_path):
    code, _, err = cryptomnesia("proving-ground", "images", tmp_path / "images", "--others", 10**23)
    assert (code, err.count("\n")) == (2, 1)
    assert "1000000" in err
    assert not (tmp_path / "images").exists()
