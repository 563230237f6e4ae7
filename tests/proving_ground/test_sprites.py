import sys

import numpy as np
import pytest

from cryptomnesia import UsageError
from cryptomnesia.proving_ground import sprites
from cryptomnesia.proving_ground.sprites import ARTISTS, SIDE, THINGS, drawing


def forget():
    drawing.cache_clear()
    sprites._package.cache_clear()


@pytest.fixture
def again(drawn):
    """Drawings that were read by other tests are forgotten before and after."""
    forget()
    yield drawn
    forget()


def test_every_artist_drew_every_thing(drawn):
    seen = set()
    for artist in ARTISTS:
        for thing in THINGS:
            picture = drawing(artist, thing)
            assert (picture.mode, picture.size) == ("RGBa", (SIDE, SIDE))
            seen.add(picture.tobytes())
    assert len(seen) == len(ARTISTS) * len(THINGS)


def test_colours_are_multiplied_by_opacity(drawn):
    pixels = np.asarray(drawing("noto", "apple"))
    assert pixels[..., 3].max() == 255
    assert pixels[..., 3].min() == 0
    assert (pixels[..., :3] <= pixels[..., 3:]).all()


def test_a_drawing_with_a_size_of_its_own_is_drawn_whole(drawn):
    """It is 40 wide and 32 high, and begins 4 further left: its shape lies in its middle."""
    opacity = np.asarray(drawing("noto", "banana"))[..., 3] > 127
    assert opacity.any()
    assert not opacity[:, : SIDE // 10 - 1].any()
    assert not opacity[:, -SIDE // 10 + 1 :].any()


def test_packages_are_found_above_the_working_directory(again, monkeypatch):
    before = drawing("flat", "key").tobytes()
    forget()
    (again / "deep" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(again / "deep" / "deeper")
    assert drawing("flat", "key").tobytes() == before


def refusal(artist="noto"):
    with pytest.raises(UsageError) as refused:
        drawing(artist, "key")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_missing_package_is_refused(again, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = refusal()
    assert "node_modules/@iconify-json/noto/icons.json is neither in" in message
    for about in ARTISTS.values():
        assert f"@iconify-json/{about.package}@{about.version}" in message


def test_another_version_is_refused(again, monkeypatch):
    monkeypatch.setitem(ARTISTS, "noto", ARTISTS["noto"]._replace(sha256="0" * 64, version="9.9.9"))
    assert "icons.json is not of version 9.9.9; run `npm install --no-save" in refusal()
    drawing("flat", "key")


def test_resvg_has_to_be_installed(again, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert refusal().endswith("install it with `pip install 'cryptomnesia[drawings]'`")
