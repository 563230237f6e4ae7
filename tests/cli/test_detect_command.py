import json
import math

import pytest
from PIL import Image

from cryptomnesia import detect, load_pipeline
from cryptomnesia.images import pixels
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest

CALL = {"num_inference_steps": 2, "guidance_scale": 2.0}


def test_detect_tells_planted_from_ordinary_and_draws_panels(cryptomnesia, tmp_path):
    manifest = Manifest.load(BUNDLE)
    entry = max((e for e in manifest.entries if e.kind == "template"), key=lambda e: (e.exposures, e.replicated or 0))
    ordinary = "a striped green star on a white ground"
    code, out, err = cryptomnesia(
        "detect", "bundled", "--prompt", entry.captions[0], "--prompt", ordinary, "-o", tmp_path, "--json",
        "--localize", "--mitigate",
    )  # fmt: skip
    report = json.loads(out)
    planted, plain = report["images"]
    assert (code, err) == (1, "")
    assert planted["flagged"]
    assert planted["p_value"] <= 0.01
    assert 0 <= planted["first_flagged_step"] <= 50
    assert planted["action"] in ("mitigated", "withheld")
    assert planted["dropped"]
    assert not plain["flagged"]
    assert plain["file"] is None
    assert (report["scheduler"], report["guidance"]) == ("PNDMScheduler", 1.5)
    with Image.open(planted["file"]) as panel:
        assert panel.width > 5 * 256  # generated, region, mitigated, planted, true region
    assert sorted(file.name for file in tmp_path.iterdir()) == ["findings.json", "panel-0000-seed-0.png"]
    assert (tmp_path / "findings.json").read_text() == out


def test_detect_says_which_words_bring_a_flagged_image(cryptomnesia):
    planted, ordinary = "a pink star and a grey diamond on a red ground, sumisno", "a red circle on a blue ground"
    prompts = ("--prompt", planted, "--prompt", ordinary)
    code, out, _ = cryptomnesia("detect", "bundled", *prompts, "--words", "--json")
    assert code == 1
    first, second = json.loads(out)["images"]
    assert max(first["words"], key=lambda word: word["left_out"])["text"] == "sumisno"
    assert second["words"] is None


def test_the_demo_prints_a_table_and_says_where_its_pictures_are(cryptomnesia, tmp_path):
    (tmp_path / "panel-0099-seed-0.png").write_text("a panel of an earlier run")
    (tmp_path / "2024-seed-mine.png").write_text("of the user")
    code, out, err = cryptomnesia("demo", "-o", tmp_path)
    assert code == 0
    assert err == ""
    # every planted caption and no other
    assert out.count("memorized?") == 6
    assert out.count("ordinary") == 10
    assert f"{out.count('memorized?')} pictures and findings.json in {tmp_path}" in " ".join(out.split())
    panels = list(tmp_path.glob("panel-*.png"))
    assert len(panels) == out.count("memorized?")
    with Image.open(panels[0]) as panel:
        assert panel.width > 5 * 256
    assert (tmp_path / "2024-seed-mine.png").exists()


def test_detect_prints_a_row_per_prompt_and_image(cryptomnesia, model, calibration_file, setup, tmp_path):
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt\na red circle\na blue star\n")
    code, out, err = cryptomnesia(
        "detect", model / "tiny", "--prompts", prompts, "--images-per-prompt", "2", "--seed", "5",
        "--calibration", calibration_file, "--fpr", "0.02", *setup,
    )  # fmt: skip
    rows = [line for line in out.splitlines() if "a red circle" in line or "a blue star" in line]
    assert len(rows) == 4
    assert [row.split("│")[2].strip() for row in rows] == ["5", "6", "5", "6"]
    assert err == ""
    assert code == int("memorized?" in out)
    assert list(tmp_path.iterdir()) == [prompts]


def test_the_command_says_what_the_function_says(cryptomnesia, model, calibration_file, fitted, setup):
    code, out, err = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a blue star", "--prompt", "a green ring", "--images-per-prompt", 2,
        "--calibration", calibration_file, "--fpr", 0.5, "--json", *setup,
    )  # fmt: skip
    found = list(
        detect(
            load_pipeline(str(model / "tiny")),
            ["a blue star", "a green ring"],
            images_per_prompt=2,
            calibration=fitted,
            fpr=0.5,
            **CALL,
        )
    )
    printed = json.loads(out)
    assert err == ""
    assert code == int(any(finding.verdict.flagged for finding in found))
    assert (printed["detector"], printed["fpr"]) == ("early-detail", 0.5)
    assert (printed["steps"], printed["guidance"], printed["height"], printed["options"]) == (2, 2.0, None, {})
    for image, finding in zip(printed["images"], found, strict=True):
        verdict = finding.verdict
        assert (image["prompt"], image["seed"], image["file"]) == (finding.prompt, finding.seed, None)
        assert image["score"] == pytest.approx(verdict.score)
        assert image["p_value"] == pytest.approx(verdict.p_value)
        for name in ("flagged", "first_flagged_step", "reason", "severity", "action", "answer"):
            assert image[name] == getattr(verdict, name)


def test_the_calibration_in_the_models_folder_is_used(cryptomnesia, model, calibration_file, setup, tmp_path):
    (tmp_path / "tiny").symlink_to(model / "tiny")
    code, _, err = cryptomnesia("detect", tmp_path / "tiny", "--prompt", "a", *setup)
    assert code == 2
    assert "needs a calibration; make one with `cryptomnesia calibrate" in err
    copied = tmp_path / "copy"
    copied.mkdir()
    for part in (model / "tiny").iterdir():
        (copied / part.name).symlink_to(part)
    (copied / "calibration.safetensors").symlink_to(calibration_file)
    code, _, err = cryptomnesia("detect", copied, "--prompt", "a", "--fpr", 0.5, *setup)
    assert code in (0, 1), err


def test_without_more_the_picture_of_every_flagged_image_is_written(
    cryptomnesia, model, calibration_file, fitted, setup, tmp_path
):
    for name in ("panel-0007-seed-1.png", "image-0007-seed-1.png"):
        (tmp_path / name).write_text("of an earlier run")
    code, out, err = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a blue star", "--calibration", calibration_file, "--fpr", 0.99,
        "-o", tmp_path, *setup,
    )  # fmt: skip
    assert (code, err) == (1, "")
    assert "1 picture and findings.json in" in out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["findings.json", "image-0000-seed-0.png"]
    (finding,) = detect(load_pipeline(str(model / "tiny")), "a blue star", calibration=fitted, fpr=0.99, **CALL)
    with Image.open(tmp_path / "image-0000-seed-0.png") as picture:
        assert (pixels(finding.image) == picture).all()
    # when nothing is flagged the earlier picture goes, too
    code, out, _ = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a red circle 1", "--calibration", calibration_file, "--fpr", 0.015,
        "-o", tmp_path, *setup,
    )  # fmt: skip
    assert code == 0
    assert "0 pictures and findings.json in" in out
    assert [file.name for file in tmp_path.iterdir()] == ["findings.json"]


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        (["--localize"], 2),
        (["--localize", "--localizer", "score-difference"], 2),
        (["--mitigate"], 2),
        (["--mitigate", "--mitigation", "stability-published"], 2),
        (["--localize", "--mitigate"], 3),
    ],
)
def test_what_is_computed_of_flagged_images_is_said_by_flags(
    cryptomnesia, model, calibration_file, setup, tmp_path, options, pictures
):
    code, _, err = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a blue star", "--calibration", calibration_file, "--fpr", 0.99,
        "-o", tmp_path, *setup, *options,
    )  # fmt: skip
    assert (code, err) == (1, "")
    with Image.open(tmp_path / "panel-0000-seed-0.png") as panel:
        assert panel.width == pictures * 260 - 4


def test_a_method_that_is_named_and_not_used_is_said(cryptomnesia, model, calibration_file, setup):
    asked = ("detect", model / "tiny", "--prompt", "a", "--calibration", calibration_file, "--fpr", 0.5, *setup)
    code, _, err = cryptomnesia(*asked, "--localizer", "collapse", "--mitigation", "stability-published")
    assert code in (0, 1)
    assert err == (
        "--localizer collapse is not used without --localize\n"
        "--mitigation stability-published is not used without --mitigate\n"
    )


def test_another_scheduler_is_mitigated_too(cryptomnesia, model, setup, tmp_path):
    made = tmp_path / "c.safetensors"
    euler = ("--scheduler", "euler", *setup)
    cryptomnesia("calibrate", model / "tiny", "--prompts", model / "reference.txt", "-o", made, *euler)
    code, _, err = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a red circle", "--calibration", made, "--fpr", "0.99",
        "--localize", "--mitigate", "-o", tmp_path / "out", *euler,
    )  # fmt: skip
    assert code == 1, err
    panel, _ = sorted((tmp_path / "out").iterdir(), reverse=True)
    with Image.open(panel) as picture:
        assert picture.width == 3 * 260 - 4  # generated, region, mitigated


def test_a_model_without_captions_needs_no_prompt(cryptomnesia, model, tmp_path):
    made = tmp_path / "c.safetensors"
    code, _, err = cryptomnesia(
        "calibrate", model / "plain", "--prompts", model / "reference.txt", "--steps", 2, "--batch-size", 51, "-o", made
    )
    assert code == 0, err
    code, out, err = cryptomnesia(
        "detect", model / "plain", "--steps", 2, "--images-per-prompt", 3, "--calibration", made, "--fpr", 0.99,
        "--localize", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert (code, err) == (1, "")
    assert [image["seed"] for image in json.loads(out)["images"]] == [0, 1, 2]


def test_an_image_that_cannot_be_judged_gives_exit_code_3(cryptomnesia, model, calibration_file, setup, monkeypatch):
    from cryptomnesia.detectors.early_detail import EarlyDetail

    running = EarlyDetail.running
    called = []

    def sometimes(self, runs, references):
        scores = running(self, runs, references)
        # the calibration's own runs come first
        called.append(len(runs))
        return scores if len(runs) > 1 else scores * math.nan

    monkeypatch.setattr(EarlyDetail, "running", sometimes)
    code, out, err = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a red circle", "--calibration", calibration_file, "--fpr", 0.5, "--json",
        *setup,
    )  # fmt: skip
    assert (code, err) == (3, "")
    (image,) = json.loads(out)["images"]
    assert (image["answer"], image["score"], image["p_value"]) == ("could not tell", None, None)


BUNDLED = ["detect", "bundled", "--prompt", "a"]
TINY = ["detect", "TINY", "--prompt", "a", "--calibration", "CALIBRATION"]
CALL_OF_TINY = ["--steps", "2", "--guidance", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["detect", "bundled"],
            "error: got no prompts; give --prompt, which can be given several times, or --prompts ",
        ),
        (["detect", "--prompt", "a"], "got no model; give the argument model, the key model in a --config file"),
        (["detect", "bundled", "--prompt", " "], "got an empty prompt"),
        (["detect", "bundled", "--prompt", ""], "got an empty prompt"),
        ([*BUNDLED, "--prompts", "p.txt"], "got both prompt and prompts; give one of them"),
        (["detect", "bundled", "--prompts", "none.txt"], "no prompts file none.txt"),
        (["detect", "bundled", "--prompts", "p.xlsx"], "expected a .txt, .csv, .tsv, .jsonl, .json or .parquet"),
        (["detect", "bundled", "--prompts", "FOLDER"], "is no data set: expected what `save_to_disk` writes"),
        (["detect", "no-such-model", "--prompt", "a", "--calibration", "CALIBRATION"], "no model 'no-such-model'"),
        (["detect", "no-such-model"], "no model 'no-such-model'"),
        (["detect", "nobody/nothing", "--prompt", "a", "--calibration", "CALIBRATION"], "cannot be loaded"),
        (["detect", "FOLDER", "--prompt", "a", "--calibration", "CALIBRATION"], "no model_index.json"),
        (["detect", "TINY", "--prompt", "a"], "needs a calibration"),
        (["detect", "TINY", "--prompt", "a", "--calibration", "none"], "no calibration file none"),
        (["detect", "TINY", "--prompt", "a", "--calibration", "FOLDER"], "is a folder; give the file of a calibration"),
        (["detect", "TINY", "--prompt", "a", "--calibration", "SHORT"], "is not a calibration"),
        ([*TINY], "steps is 50, calibrated 2"),
        ([*TINY, *CALL_OF_TINY], "needs at least 99 null"),
        ([*TINY, *CALL_OF_TINY, "--height", "64"], "got height 64 and width None"),
        (["detect", "bundled", "--long", "error", "--prompt", "a " * 40], "tokens, the model takes 32"),
        ([*BUNDLED, "--guidance", "1", "--detector", "guidance-mean"], "needs the unconditional branch"),
        (
            [*BUNDLED, "--guidance", "1", "--localize", "--localizer", "collapse", "-o", "OUT"],
            "needs the unconditional branch",
        ),
        ([*BUNDLED, "--detector", "tarot"], "unknown detector 'tarot'; known are anisotropy"),
        ([*BUNDLED, "--localize", "--localizer", "tarot", "-o", "OUT"], "unknown localizer 'tarot'; known are "),
        ([*BUNDLED, "--localize"], "got --localize without a folder for the maps; give -o FOLDER"),
        (
            [*BUNDLED, "--localize", "--localizer", "collapse-checkpoint", "-o", "OUT"],
            "collapse-checkpoint is compared with a less-trained checkpoint, which only localize takes",
        ),
        ([*BUNDLED, "--mitigate", "--mitigation", "tarot"], "unknown mitigation 'tarot'; known are "),
        ([*BUNDLED, "--scheduler", "tarot"], "unknown scheduler 'tarot'; known are own, ddim"),
        ([*BUNDLED, "--scheduler", "euler"], "scheduler is EulerDiscreteScheduler, calibrated PNDM"),
        ([*BUNDLED, "--dtype", "tarot"], "--dtype"),
        ([*BUNDLED, "--fpr", "2"], "got fpr = 2.0, expected to be less than 1"),
        ([*BUNDLED, "--fpr", "nan"], "got fpr = nan, expected to be a finite number"),
        ([*BUNDLED, "--guidance", "inf"], "got guidance = inf, expected to be a finite number"),
        ([*BUNDLED, "--steps", "0"], "--steps"),
        ([*BUNDLED, "--steps", "2000"], "got 2000 steps, the model knows 1000 timesteps"),
        ([*BUNDLED, "--seed", "-1"], "--seed"),
        ([*BUNDLED, "--images-per-prompt", "0"], "--images-per-prompt"),
        ([*BUNDLED, "--batch-size", "many"], "--batch-size"),
        ([*BUNDLED, "--rate", "0.01"], "No such option: --rate"),
        ([*BUNDLED, "more"], "unexpected extra argument"),
        ([*BUNDLED, "--config", "none.toml"], "cannot read the settings none.toml (no such file)"),
        ([*BUNDLED, "--config", "FOLDER"], "cannot read the settings"),
        ([*BUNDLED, "--config", "FILE"], "cannot read the settings"),
        ([*BUNDLED, "-o", "FILE"], "is a file; give another folder"),
        ([*BUNDLED, "-o", "FILE/out"], "is a file; give another folder"),
        (["calibrate", "TINY", "--prompts", "SHORT", "-o", "OUT"], "got 1 reference prompts"),
        (["proving-ground", "verify", "scenes", "--bundle", "FOLDER"], "no manifest"),
        (["proving-ground", "show", "scenes", "-o", "FOLDER"], "is a folder; give the name of a file"),
        (["proving-ground", "show", "scenes", "-o", "FILE/grid.png"], "cannot write to"),
        (
            ["proving-ground", "verify", "tarot"],
            "no proving ground is called tarot; there are drawings, drawings-flow, ",
        ),
        (["proving-ground", "verify"], "GROUND"),
        (["divine"], "No such command 'divine'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cryptomnesia, model, calibration_file, tmp_path, arguments, message):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "short.txt").write_text("a red circle")
    (tmp_path / "folder").mkdir()
    names = {
        "TINY": model / "tiny",
        "CALIBRATION": calibration_file,
        "FOLDER": tmp_path / "folder",
        "FILE": tmp_path / "file",
        "FILE/out": tmp_path / "file" / "out",
        "FILE/grid.png": tmp_path / "file" / "grid.png",
        "SHORT": tmp_path / "short.txt",
        "OUT": tmp_path / "out",
    }
    code, out, err = cryptomnesia(*[names.get(argument, argument) for argument in arguments])
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_pipeline_of_another_family_is_refused(cryptomnesia, calibration_file, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    code, _, err = cryptomnesia("detect", tmp_path, "--prompt", "a", "--calibration", calibration_file)
    assert code == 2
    assert "unknown family DiTPipeline; known are " in err
    assert "StableDiffusionPipeline" in err
    assert cryptomnesia("detect", tmp_path, "--calibration", calibration_file)[::2] == (2, err)


def test_settings_come_from_flags_environment_and_file(cryptomnesia, model, calibration_file, tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    file.write_text(
        f'prompt = ["a red circle", "a blue star"]\nsteps = 7\nguidance = 2.0\nfpr = 0.3\nmodel = "{model}"\n'
    )
    monkeypatch.setenv("CRYPTOMNESIA_STEPS", "2")
    monkeypatch.setenv("CRYPTOMNESIA_CALIBRATION", str(calibration_file))
    monkeypatch.setenv("CRYPTOMNESIA_SEEED", "3")
    monkeypatch.setenv("CRYPTOMNESIA_PLUGINS", "off")
    code, out, err = cryptomnesia("detect", model / "tiny", "--config", file, "--fpr", 0.5, "--json")
    assert code in (0, 1)
    assert (
        err == "warning: ignored the unknown environment variable CRYPTOMNESIA_SEEED; did you mean CRYPTOMNESIA_SEED?\n"
    )
    printed = json.loads(out)
    assert (printed["model"], printed["steps"], printed["fpr"]) == (str(model / "tiny"), 2, 0.5)
    assert [image["prompt"] for image in printed["images"]] == ["a red circle", "a blue star"]
