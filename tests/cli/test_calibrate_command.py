import json

import pytest

from cryptomnesia import Calibration
from cryptomnesia.calibration.fitting import FIRST_SEED
from cryptomnesia.settings import CalibrateSettings


def test_calibrate_makes_what_detect_takes(cryptomnesia, model, setup, tmp_path):
    made = tmp_path / "deep" / "c.safetensors"
    arguments = ("--prompts", model / "reference.txt", "--batch-size", "34", "-o", made, *setup)
    code, out, err = cryptomnesia("calibrate", model / "tiny", *arguments)
    assert code == 0
    assert err == "the default false-positive rate of detect is 1% (--fpr 0.01); 150 references support it\n"
    assert out == f"{made}: 102 references; false-positive rates from 1.45% up\n"
    code, _, _ = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a red circle", "--calibration", made, "--fpr", "0.02", *setup
    )
    assert code in (0, 1)


def test_the_first_seed_is_that_of_the_library():
    assert CalibrateSettings().seed == FIRST_SEED


def test_the_mean_of_a_map_is_calibrated_on_demand(cryptomnesia, model, calibration_file, setup, tmp_path):
    made = tmp_path / "c.safetensors"
    arguments = ("--prompts", model / "reference.txt", "--batch-size", "34", "-o", made, *setup)
    chosen = ("--detector", "collapse", "--detector", "guidance-map")
    code, _, err = cryptomnesia("calibrate", model / "tiny", *arguments, *chosen)
    assert code == 0, err
    assert set(Calibration.load(made).runs.signals) == {"collapse", "guidance-map"}
    asked = ("--prompt", "a red circle", "--detector", "collapse", "--fpr", "0.02", "--json", *setup)
    code, out, err = cryptomnesia("detect", model / "tiny", "--calibration", made, *asked)
    assert code in (0, 1), err
    printed = json.loads(out)
    assert printed["detector"] == "collapse"
    assert printed["images"][0]["score"] >= 0
    code, _, err = cryptomnesia("detect", model / "tiny", "--calibration", calibration_file, *asked)
    assert code == 2
    assert "has not recorded collapse" in err
    assert "generate the references again with `cryptomnesia calibrate --detector collapse`" in err
    assert "or use another detector" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "tarot"], "unknown detector 'tarot'; known are drift"),
        (["--detector", "bright-ending"], "needs captions or a checkpoint, which are not known while a run goes on"),
        (["--detector", "collapse", "--guidance", "1"], "collapse needs the unconditional branch"),
        (["--localizer", "tarot"], "unknown localizer 'tarot'; known are"),
        (["--localizer", "collapse-checkpoint"], "needs a less-trained checkpoint of"),
        (["--localizer", "collapse", "--checkpoint", "bundled"], "no localizer that is compared with a checkpoint"),
        (["--checkpoint", "bundled"], "got --checkpoint for maps, and no --localizer; give one, or leave them out"),
        (["--localizer", "score-difference", "--probes", "16"], "got --probes, and score-difference has no such"),
        (["--probes", "16", "--at", "0"], "got --at and --probes for maps, and no --localizer"),
        (["--seed", "-1"], "--seed"),
        (["--prompts", "TWICE"], "1 of 102 reference prompts are repeated; give every prompt once"),
        (["--prompts", "FOLDER"], "expected a .txt, .csv or .jsonl file"),
        (["-o", "FOLDER"], "is a folder; give the name of a file"),
        (["-o", "FILE/c.safetensors"], "cannot write to"),
    ],
)
def test_calibrate_explains_what_it_cannot_do(cryptomnesia, model, setup, tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "twice.txt").write_text("\n".join(f"a red circle {max(1, number)}" for number in range(102)))
    names = {
        "FOLDER": tmp_path / "folder",
        "FILE/c.safetensors": tmp_path / "file" / "c.safetensors",
        "TWICE": tmp_path / "twice.txt",
    }
    made = tmp_path / "c.safetensors"
    code, out, err = cryptomnesia(
        "calibrate", model / "tiny", "--prompts", model / "reference.txt", "-o", made, *setup,
        *[names.get(argument, argument) for argument in arguments],
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not made.exists()


def test_what_is_needed_is_named(cryptomnesia, model, tmp_path):
    assert cryptomnesia("calibrate", model / "tiny", "-o", tmp_path / "c") == (
        2,
        "",
        "error: got no prompts; give --prompts, the key prompts in a --config file, or the environment variable "
        "CRYPTOMNESIA_PROMPTS\n",
    )
    code, out, err = cryptomnesia("calibrate", model / "tiny", "--prompts", model / "reference.txt")
    assert (code, out) == (2, "")
    assert err.startswith("error: Missing option '-o' / '--output'")


def test_a_calibration_is_made_in_the_dtype_of_the_service(cryptomnesia, model, setup, tmp_path):
    made = tmp_path / "half.safetensors"
    given = [model / "tiny", "--prompts", model / "reference.txt", *setup]
    code, _, err = cryptomnesia("calibrate", *given, "--dtype", "bfloat16", "-o", made)
    assert code == 0, err
    (tmp_path / "prompts.txt").write_text("a blue star\n")
    again = [model / "tiny", "--prompts", tmp_path / "prompts.txt", *setup, "--calibration", made]
    code, _, err = cryptomnesia("detect", *again, "--dtype", "bfloat16", "--fpr", 0.05)
    assert code in (0, 1), err
    code, _, err = cryptomnesia("detect", *again, "--fpr", 0.05)
    assert code == 2
    assert "dtype is float32, calibrated bfloat16" in err
    code, _, err = cryptomnesia("detect", *again, "--dtype", "tarot")
    assert code == 2
    assert "'tarot' is not one of 'float32', 'float16', 'bfloat16'" in err
