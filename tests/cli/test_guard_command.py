import json
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from cryptomnesia import detect, load_pipeline
from cryptomnesia.guarding.policies import POLICIES
from cryptomnesia.images import pixels
from cryptomnesia.settings import GuardSettings

CALL = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture
def guarded(cryptomnesia, model, calibration_file, setup, tmp_path):
    """Run `guard` on two prompts: (exit code, JSON, standard error, folder of the images)."""

    def run(*arguments, prompts=("a blue star", "a green ring")):
        asked = [part for prompt in prompts for part in ("--prompt", prompt)]
        code, out, err = cryptomnesia(
            "guard", model / "tiny", *asked, "--calibration", calibration_file, "-o", tmp_path / "out", "--json",
            *setup, *arguments,
        )  # fmt: skip
        return code, json.loads(out), err, tmp_path / "out"

    return run


def test_the_policies_are_those_of_the_library():
    assert get_args(GuardSettings.model_fields["policy"].annotation) == tuple(POLICIES)


def test_observing_returns_the_images_of_the_pipeline(guarded, model, fitted):
    code, printed, err, folder = guarded("--fpr", "0.99", "--images-per-prompt", "2", "--seed", "3")
    assert (code, err) == (1, "")
    assert (printed["policy"], printed["mitigation"], printed["detector"]) == ("observe", None, "early-detail")
    found = list(
        detect(
            load_pipeline(str(model / "tiny")),
            ["a blue star", "a green ring"],
            images_per_prompt=2,
            seeds=[3, 4, 3, 4],
            calibration=fitted,
            fpr=0.99,
            **CALL,
        )
    )
    assert [image["seed"] for image in printed["images"]] == [3, 4, 3, 4]
    for number, (image, finding) in enumerate(zip(printed["images"], found, strict=True)):
        assert image["file"] == str(folder / f"guarded-{number:04}-seed-{finding.seed}.png")
        assert image["prompt"] == finding.prompt
        assert image["p_value"] == pytest.approx(finding.verdict.p_value)
        assert image["action"] == "none"
        with Image.open(image["file"]) as picture:
            difference = np.asarray(picture).astype(int) - pixels(finding.image)
        assert abs(difference).max() <= 1
    assert len(list(folder.iterdir())) == 4


def test_a_blocked_image_is_black_and_nothing_flagged_gives_exit_code_0(guarded):
    code, printed, err, folder = guarded("--policy", "block", "--fpr", "0.99", "--detector", "drift")
    assert (code, err) == (1, "")
    for image in printed["images"]:
        assert (image["flagged"], image["action"]) == (True, "withheld")
        with Image.open(image["file"]) as picture:
            assert np.asarray(picture).max() == 0
    code, printed, err, folder = guarded(
        "--policy", "block", "--fpr", "0.015", "--detector", "drift", prompts=["a red circle 1"]
    )
    assert (code, err) == (0, "")
    assert printed["images"][0]["action"] == "none"
    # the files of the earlier run are removed
    assert [file.name for file in folder.iterdir()] == ["guarded-0000-seed-0.png"]


@pytest.mark.parametrize(
    ("options", "mitigation"),
    [
        (["--policy", "mitigate"], "partial-captions"),
        (["--policy", "mitigate", "--mitigation", "stability-published"], "stability-published"),
        (["--policy", "regenerate"], "partial-captions"),
        (["--policy", "block", "--decide-by", "2"], None),
    ],
)
def test_policies_act_on_flagged_images(guarded, options, mitigation):
    code, printed, err, folder = guarded("--fpr", "0.9", "--batch-size", "1", *options)
    assert (code, err) == (1, "")
    assert printed["mitigation"] == mitigation
    flagged = [image for image in printed["images"] if image["flagged"]]
    assert flagged
    assert all(image["action"] != "none" for image in flagged)
    if options[1] == "regenerate":
        assert all(image["retried"] for image in flagged)
    assert len(list(folder.iterdir())) == 2


def test_the_table_says_what_was_done(cryptomnesia, model, calibration_file, setup, tmp_path):
    code, out, err = cryptomnesia(
        "guard", model / "tiny", "--prompt", "a blue star", "--calibration", calibration_file, "--policy", "block",
        "--fpr", 0.99, "-o", tmp_path / "out", *setup,
    )  # fmt: skip
    assert (code, err) == (1, "")
    assert "early-detail, flagged at p ≤ 0.99" in out
    row = next(line for line in out.splitlines() if "a blue star" in line)
    assert row.split("│")[5].strip() == "memorized?"
    assert row.split("│")[7].strip() == "withheld"
    assert out.splitlines()[-1] == f"1 image in {tmp_path / 'out'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "pray"], "--policy"),
        (["--decide-by", "0"], "--decide-by"),
        (["--decide-by", "3"], "got decide_by=3 of 2 evaluations; give one in 1 … 2"),
        (["--decide-by", "1", "--detector", "drift"], "drift needs 2 evaluations before there is a score, got 1"),
        (["--detector", "tarot"], "unknown detector 'tarot'"),
        (["--mitigation", "tarot"], "unknown mitigation 'tarot'"),
        (["--calibration", "nowhere"], "no calibration file nowhere"),
        (["--steps", "3"], "steps is 3, calibrated 2"),
        (["--fpr", "0.001"], "needs at least 999 null references"),
        (["--prompts", "p.txt"], "got both prompt and prompts"),
        (["-o", "FILE"], "is a file; give another folder"),
    ],
)
def test_guard_explains_what_it_cannot_do(cryptomnesia, model, calibration_file, setup, tmp_path, arguments, message):
    (tmp_path / "file").write_text("a file")
    arguments = [str(tmp_path / "file") if argument == "FILE" else argument for argument in arguments]
    code, out, err = cryptomnesia(
        "guard", model / "tiny", "--prompt", "a", "--calibration", calibration_file, "--fpr", 0.5, *setup,
        "-o", tmp_path / "out", *arguments,
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("unknown", "action", "most"), [("allow", "allowed", 255), ("block", "withheld", 0)])
def test_a_call_that_no_calibration_fits_follows_the_rule(guarded, unknown, action, most):
    code, printed, err, _folder = guarded("--steps", "1", "--unknown", unknown, "--fpr", "0.5")
    # no image could be judged
    assert (code, err) == (3, "")
    assert printed["unknown"] == unknown
    for image in printed["images"]:
        assert (image["action"], image["p_value"], image["answer"]) == (action, None, "could not tell")
        assert "steps is 1, calibrated 2" in image["reason"]
        with Image.open(image["file"]) as picture:
            assert (np.asarray(picture).max() == 0) == (most == 0)


def test_of_several_calibrations_the_fitting_one_is_used(guarded, cryptomnesia, model, setup, tmp_path):
    references, other = tmp_path / "references.txt", tmp_path / "other.safetensors"
    references.write_text("\n".join(f"a red bar {number}" for number in range(102)))
    made = cryptomnesia("calibrate", model / "tiny", "--prompts", references, "-o", other, *setup, "--steps", 1)
    assert made[0] == 0
    settings = ("--calibration", str(other), "--fpr", "0.5", "--detector", "guidance-first")
    for steps in ("1", "2"):
        _code, printed, err, _ = guarded(*settings, "--steps", steps)
        assert err == ""
        assert all(image["p_value"] is not None for image in printed["images"])
