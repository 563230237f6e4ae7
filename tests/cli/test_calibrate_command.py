import json

import pytest

from cryptomnesia import Calibration, EarlyDetail
from cryptomnesia.calibration.fitting import DEFAULT_FPR, FIRST_SEED
from cryptomnesia.calibration.outliers import Suspicious
from cryptomnesia.settings import CalibrateSettings, JudgeSettings


def test_calibrate_makes_what_detect_takes(cryptomnesia, model, setup, tmp_path):
    made = tmp_path / "deep" / "c.safetensors"
    arguments = ("--prompts", model / "reference.txt", "--batch-size", "34", "-o", made, *setup)
    code, out, err = cryptomnesia("calibrate", model / "tiny", *arguments)
    assert code == 0
    assert err == (
        "warning: 102 reference prompts leave 68 for the null, so no p-value is below 1/69 = 0.0145; the default "
        "false-positive rate of 0.01 needs 148 reference prompts\n"
    )
    assert out == f"{made}: 102 references; false-positive rates from 1.45% up\n"
    code, _, _ = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a red circle", "--calibration", made, "--fpr", "0.02", *setup
    )
    assert code in (0, 1)


def test_what_a_rate_needs_is_said_before_the_model_is_loaded(cryptomnesia, model, setup, tmp_path):
    few = ("--prompts", model / "reference.txt", "-o", tmp_path / "c.safetensors", *setup)
    code, out, err = cryptomnesia("calibrate", model / "nosuch", *few, "--fpr", "0.01")
    assert (code, out) == (2, "")
    assert err == (
        "error: 102 reference prompts leave 68 for the null, so no p-value is below 0.0145; a rate of 0.01 needs 148 "
        "reference prompts, or give a higher rate\n"
    )
    code, _, err = cryptomnesia("calibrate", model / "tiny", *few, "--fpr", "0.02")
    assert (code, err) == (0, "")


def test_references_that_look_memorized_are_listed_and_left_out_on_demand(
    cryptomnesia, model, setup, tmp_path, monkeypatch
):
    found = [Suspicious(number, 1e-5, {"drift": 5.678}, {"drift": 1.234}) for number in (101, 7)]
    monkeypatch.setattr(
        Calibration, "suspicious", lambda self: [row for row in found if row.number not in self.left_out]
    )
    made = tmp_path / "c.safetensors"
    # 68 scores of the null support a rate of 1/69, and 67 do not
    arguments = ("--prompts", model / "reference.txt", "--batch-size", "34", "--fpr", "0.0145", "-o", made, *setup)
    code, out, err = cryptomnesia("calibrate", model / "tiny", *arguments)
    assert code == 0
    assert err.startswith("warning: reference prompts that look memorized themselves: 101, 7 (counted from 0)")
    assert out.startswith(f"{made}: 102 references; false-positive rates from 1.45% up\n")
    lines = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    assert "101 a red circle 101 1e-05 drift 5.68 (1.23)" in lines
    assert "1% too few references too few references" in lines
    threshold = Calibration.load(made).threshold(EarlyDetail(), 0.05)
    assert f"5% {threshold:.2f} {Calibration.load(made).without([7, 101]).threshold(EarlyDetail(), 0.05):.2f}" in lines
    assert "Nothing was left out: give --leave-out suspicious" in out
    assert Calibration.load(made).left_out == ()
    code, out, err = cryptomnesia("calibrate", model / "tiny", *arguments, "--leave-out", "suspicious")
    assert code == 0
    assert "warning: what was left out is missing for a rate of 0.0145; give 2 other prompts in its place\n" in err
    assert "100 references; 2 left out; false-positive rates from" in out
    assert "They were left out; without --leave-out they stay. Without them 100 references and" in out
    assert Calibration.load(made).left_out == (7, 101)


def test_defaults_are_those_of_the_library():
    assert CalibrateSettings().seed == FIRST_SEED
    assert JudgeSettings().fpr == DEFAULT_FPR


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
        (["--detector", "tarot"], "unknown detector 'tarot'; known are anisotropy"),
        (["--detector", "collapse-empty"], "needs captions or a checkpoint, which are not known while a run goes on"),
        (["--detector", "collapse", "--guidance", "1"], "collapse needs the unconditional branch"),
        (["--localizer", "tarot"], "unknown localizer 'tarot'; known are"),
        (["--localizer", "collapse-checkpoint"], "needs a less-trained checkpoint of"),
        (["--localizer", "collapse", "--checkpoint", "bundled"], "no localizer that is compared with a checkpoint"),
        (["--checkpoint", "bundled"], "got --checkpoint for maps, and no --localizer; give one, or leave them out"),
        (["--localizer", "score-difference", "--probes", "16"], "got --probes, and score-difference has no such"),
        (["--probes", "16", "--at", "0"], "got --at and --probes for maps, and no --localizer"),
        (["--seed", "-1"], "--seed"),
        (["--prompts", "TWICE"], "1 of 102 reference prompts are repeated; give every prompt once"),
        (["--prompts", "FOLDER"], "is no data set: expected what `save_to_disk` writes"),
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
