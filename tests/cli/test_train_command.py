import json

import pytest
from PIL import Image

from cryptomnesia.proving_ground import bundle as bundling
from cryptomnesia.proving_ground import show as showing
from cryptomnesia.proving_ground import verify as verifying
from cryptomnesia.proving_ground.diffusion import PixelDiffusion
from cryptomnesia.proving_ground.grounds import pixels
from tiny_runs import TINY


@pytest.fixture
def tiny(monkeypatch):
    """Few steps of a small network on a ground with few concepts."""
    for name, value in (("recipe", TINY), ("networks", PixelDiffusion(widths=(8, 8, 32))), ("steps", 2)):
        monkeypatch.setattr(pixels.Pixels, name, value)
    monkeypatch.setattr(pixels, "EXPOSURES", 1)
    monkeypatch.setattr(bundling, "REFERENCES", 100)
    monkeypatch.setattr(verifying, "PICTURES", 10)
    monkeypatch.setattr(showing, "_PICTURES", 10)


def test_a_ground_is_trained_measured_and_shown(cryptomnesia, tiny, tmp_path):
    run, bundle = tmp_path / "run", tmp_path / "run" / "bundle"
    code, out, _ = cryptomnesia("proving-ground", "train", "pixels", run, "--processes", 1)
    assert code == 0
    assert out == f"{bundle}: measure it with `cryptomnesia proving-ground verify pixels --bundle {bundle} --write`\n"
    code, out, _ = cryptomnesia("proving-ground", "verify", "pixels", "--bundle", bundle, "--write", "--json")
    assert code == 0
    assert json.loads(out)["pictures"] == 10
    code, _, _ = cryptomnesia("proving-ground", "show", "pixels", "--bundle", bundle, "-o", tmp_path / "grid.png")
    assert code == 0
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.height == 20 + 3 * 100


def test_a_folder_without_an_autoencoder_is_refused(cryptomnesia, tmp_path):
    given = "--autoencoder", tmp_path, "--processes", 1
    code, _, err = cryptomnesia("proving-ground", "train", "drawings-flow", tmp_path / "run", *given)
    assert code == 2
    assert "holds no autoencoder" in err
