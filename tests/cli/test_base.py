"""`--checkpoint` gives the base of a fine-tune to the commands that judge images."""

import json

from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.testing.setups import twin


def test_the_commands_take_a_base(cryptomnesia, model, setup, tmp_path):
    twin(stable_diffusion()).save_pretrained(tmp_path / "base")
    made, base = tmp_path / "c.safetensors", ("--checkpoint", tmp_path / "base")
    by = ("--detector", "base-difference")
    code, _, err = cryptomnesia(
        "calibrate", model / "tiny", "--prompts", model / "reference.txt", *by, *base, "-o", made, *setup
    )
    assert code == 0, err
    asked = ("--prompt", "a red circle", "--calibration", made, "--fpr", "0.02", "--json", *setup)
    code, out, err = cryptomnesia("detect", model / "tiny", *asked, *by, *base)
    assert code in (0, 1), err
    found = json.loads(out)
    assert found["detector"] == "base-difference"
    code, out, err = cryptomnesia("guard", model / "tiny", *asked, *by, *base, "-o", tmp_path / "guarded")
    assert code in (0, 1), err
    assert json.loads(out)["images"][0]["p_value"] == found["images"][0]["p_value"]
    code, _, err = cryptomnesia("detect", model / "tiny", *asked, *by)
    assert (code, "compares a fine-tune with its base" in err) == (2, True)
    code, _, err = cryptomnesia("detect", model / "tiny", *asked, *base)
    assert code == 2
    assert "the detector auto is compared with none; give --detector base-difference, or leave --checkpoint out" in err
