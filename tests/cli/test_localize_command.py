import json
import math

import pytest
from PIL import Image
from safetensors.torch import load_file

from cryptomnesia import Calibration

BOTH = ["--localizer", "score-difference", "--localizer", "score-difference-checkpoint"]


@pytest.fixture(scope="module")
def mapped(cryptomnesia_once, model, setup, tmp_path_factory):
    """A calibration with maps of two localizers, and what the command that made it printed."""
    made = tmp_path_factory.mktemp("maps") / "maps.safetensors"
    reference = ("--prompts", model / "reference.txt", "--batch-size", "34", "-o", made)
    printed = cryptomnesia_once("calibrate", model / "tiny", *reference, *BOTH, "--checkpoint", model / "tiny", *setup)
    return made, printed


def test_one_file_holds_scores_and_maps(mapped):
    made, (code, out, err) = mapped
    assert code == 0, err
    assert "102 references" in out
    assert "maps of score-difference, score-difference-checkpoint" in out
    calibration = Calibration.load(made)
    assert len(calibration) == 102
    assert calibration.maps["score-difference-checkpoint"].shape == (102, 8, 8)
    assert calibration.runs.norms["delta"].shape == (102, 2)


def test_localize_draws_maps_and_with_a_calibration_masks(cryptomnesia, model, mapped, setup, tmp_path):
    asked = ("--prompt", "a red circle", "--prompt", "a blue star", "-o", tmp_path / "out", *setup)
    code, out, err = cryptomnesia(
        "localize", model / "tiny", *asked, *BOTH, "--checkpoint", model / "tiny", "--calibration", mapped[0], "--json"
    )
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert (printed["pixel_fpr"], printed["scheduler"], printed["steps"]) == (0.05, "DDIMScheduler", 2)
    assert printed["localizers"]["score-difference"] == "score-difference(step=-1, baseline='unconditional')"
    maps = printed["maps"]
    assert [(row["prompt"], row["localizer"]) for row in maps] == [
        (prompt, name)
        for prompt in ("a red circle", "a blue star")
        for name in ("score-difference", "score-difference-checkpoint")
    ]
    assert all(0 <= row["fraction"] <= 1 and 0 < row["p_value"] <= 1 for row in maps)
    assert all(0 < row["mean_p_value"] <= 1 and row["error"] is None for row in maps)
    assert maps[3]["panel"].endswith("maps-0001-seed-0.png")
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    made = [f"maps-000{n}-seed-0.{kind}" for n in (0, 1) for kind in ("png", "safetensors")]
    assert files == [*made, "regions.json"]
    tensors = load_file(tmp_path / "out" / "maps-0001-seed-0.safetensors")
    assert tensors["score-difference"].shape == (8, 8)
    assert tensors["score-difference/mask"].float().mean().item() == pytest.approx(maps[2]["fraction"])
    with Image.open(tmp_path / "out" / "maps-0000-seed-0.png") as panel:
        assert panel.width > 4 * 256  # generated, two maps, two masks


def test_without_a_calibration_there_are_maps_only(cryptomnesia, model, setup, tmp_path):
    asked = ("--prompt", "a red circle", "--prompt", "a blue star", "-o", tmp_path / "out", *setup)
    code, out, err = cryptomnesia("localize", model / "tiny", *asked, "--probes", "16")
    assert (code, err) == (0, "")
    assert "settled-detail" in out
    assert "2 panels and as many files of maps in" in out
    tensors = load_file(tmp_path / "out" / "maps-0000-seed-0.safetensors")
    assert set(tensors) == {"settled-detail", "settled-detail/error"}
    # the files of an earlier run are removed
    code, out, _ = cryptomnesia("localize", model / "tiny", "--prompt", "a", "-o", tmp_path / "out", *setup)
    assert code == 0
    assert "1 panel and as many files of maps in" in out
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_settings_of_localizers_reach_those_that_have_them(cryptomnesia, model, setup, tmp_path):
    code, out, err = cryptomnesia(
        "localize", model / "tiny", "--prompt", "a red circle", "--localizer", "collapse", "--localizer",
        "score-difference", "--at", "-2", "--probes", 32, "--memory", 0.5, "-o", tmp_path, "--json", *setup,
    )  # fmt: skip
    assert (code, err) == (0, "")
    words = json.loads(out)["localizers"]
    assert words["score-difference"] == "score-difference(step=-2, baseline='unconditional')"
    assert words["collapse"].startswith("collapse(step=-2, guide=0, ")
    assert "probes=32, group=8, wanted=None" in words["collapse"]
    code, out, err = cryptomnesia(
        "localize", model / "tiny", "--prompt", "a red circle", "--wanted", 0.5, "-o", tmp_path, "--json", *setup
    )
    assert (code, err) == (0, "")
    assert "probes=512, group=8, wanted=0.5" in json.loads(out)["localizers"]["settled-detail"]


def test_the_calibration_beside_the_model_makes_masks_where_it_fits(cryptomnesia, model, mapped, setup, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for part in (model / "tiny").iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "calibration.safetensors").symlink_to(mapped[0])
    asked = ("localize", folder, "--prompt", "a", "-o", tmp_path / "out", *setup)
    code, out, err = cryptomnesia(*asked, "--localizer", "score-difference", "--pixel-fpr", 0.1, "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["pixel_fpr"] == 0.1
    assert printed["maps"][0]["fraction"] is not None
    code, out, err = cryptomnesia(*asked, "--localizer", "guidance-map", "--json")
    assert code == 0
    assert err.startswith(
        "warning: maps without masks: the calibration has no maps of guidance-map (it has: score-difference,"
    )
    assert err.count("\n") == 1
    assert json.loads(out)["pixel_fpr"] is None
    code, out, err = cryptomnesia(*asked, "--localizer", "guidance-map", "--smooth", 1)
    assert (code, out) == (2, "")
    assert err.startswith("error: the calibration has no maps of guidance-map")
    assert err.count("\n") == 1
    code, out, err = cryptomnesia(*asked, "--localizer", "score-difference")
    assert (code, err) == (0, "")
    assert out.startswith("maps, with masks that hold 5% of the pixels of ordinary images")


def test_a_model_without_captions_is_mapped(cryptomnesia, model, tmp_path):
    code, out, err = cryptomnesia("localize", model / "plain", "--steps", 3, "-o", tmp_path, "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["maps"]
    assert row["localizer"] == "curvature"
    assert math.isfinite(row["mean"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--localizer", "tarot"], "unknown localizer 'tarot'"),
        (["--localizer", "curvature-checkpoint"], "unknown localizer 'curvature-checkpoint'"),
        (["--localizer", "collapse", "--localizer", "collapse"], "of which two have the same name"),
        (["--localizer", "score-difference-checkpoint"], "needs a less-trained checkpoint of"),
        (["--at", "7"], "got the evaluation 7 of a run of 2"),
        (["--at", "nan"], "got at = nan, expected to be a finite number"),
        (["--probes", "20"], "20 orthogonal probes in groups of 8"),
        (["--probes", "0"], "--probes"),
        (["--at", "-0.5"], "got --at -0.5; give the number of an evaluation"),
        (["--guidance", "1", "--localizer", "collapse"], "needs the unconditional branch"),
        (["--calibration", "nowhere"], "no calibration file nowhere"),
        (["--checkpoint", "nowhere"], "got --checkpoint nowhere, and no localizer that is compared with a checkpoint"),
        (["--localizer", "collapse-checkpoint", "--checkpoint", "nowhere"], "no model 'nowhere'"),
        (["--pixel-fpr", "0.1"], "got --pixel-fpr for masks, which need a calibration with these maps"),
        (["--smooth", "1", "--smallest", "2"], "got --smooth and --smallest for masks"),
        (["--smooth", "-1"], "--smooth"),
        (["--wanted", "-1"], "got wanted = -1.0, expected to be greater than 0"),
        (["--memory", "0"], "got memory = 0.0, expected to be greater than 0"),
        (
            ["--localizer", "score-difference", "--probes", "16"],
            "got --probes, and score-difference has no such setting",
        ),
        (["--localizer", "guidance-map", "--memory", "1"], "got --memory, and guidance-map has no such setting"),
        (["--map", "collapse"], "No such option: --map"),
        (["-o", "FILE"], "is a file; give another folder"),
    ],
)
def test_localize_explains_what_it_cannot_do(cryptomnesia, model, setup, tmp_path, arguments, message):
    (tmp_path / "file").write_text("a file")
    arguments = [str(tmp_path / "file") if argument == "FILE" else argument for argument in arguments]
    code, out, err = cryptomnesia(
        "localize", model / "tiny", "--prompt", "a red circle", "-o", tmp_path / "out", *setup, *arguments
    )
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_a_calibration_of_another_setup_or_without_the_maps_is_refused(
    cryptomnesia, model, mapped, calibration_file, setup, tmp_path
):
    asked = ("localize", model / "tiny", "--prompt", "a", "-o", tmp_path / "out", "--localizer", "score-difference")
    code, _, err = cryptomnesia(*asked, "--calibration", calibration_file, *setup)
    assert code == 2
    assert "the calibration has no maps of score-difference (it has: none)" in err
    code, _, err = cryptomnesia(*asked, "--calibration", mapped[0], "--steps", 3, "--guidance", 2)
    assert code == 2
    assert "steps is 3, calibrated 2" in err
    code, _, err = cryptomnesia(*asked, "--calibration", mapped[0], "--at", 0, *setup)
    assert code == 2
    assert "score-difference(step=0, baseline='unconditional'), calibrated score-difference(step=-1" in err
    code, _, err = cryptomnesia(*asked, "--calibration", mapped[0], "--pixel-fpr", 0.00001, *setup)
    assert code == 2
    assert "got the pixel rate 1e-05" in err
    assert not (tmp_path / "out").exists()
