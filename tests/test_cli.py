import json
import subprocess
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file

from cryptomnesia.pipelines.loading import load_pipeline
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.testing.miniatures import stable_diffusion

SETUP = ["--steps", "2", "--guidance", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random miniature as a diffusers folder, reference prompts and its calibration beside it."""
    folder = tmp_path_factory.mktemp("model")
    stable_diffusion().save_pretrained(folder / "tiny")
    (folder / "reference.txt").write_text("\n".join(f"a red circle {number}" for number in range(102)))
    return folder


@pytest.fixture(scope="module")
def calibration(model):
    from cryptomnesia import Calibration, Sampling
    from cryptomnesia.prompts import read_prompts

    pipe = load_pipeline(str(model / "tiny"))
    fitted = Calibration.fit(pipe, read_prompts(model / "reference.txt"), Sampling(2, 2.0), batch_size=34)
    fitted.save(model / "calibration.safetensors")
    return model / "calibration.safetensors"


def test_help_and_import_load_neither_torch_nor_diffusers():
    code = (
        "import sys, cryptomnesia, cryptomnesia.cli\n"
        "try: cryptomnesia.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert "detect" in out


def test_detect_tells_planted_from_ordinary_and_draws_panels(cryptomnesia, tmp_path):
    manifest = Manifest.load(BUNDLE)
    entry = max((e for e in manifest.entries if e.kind == "template"), key=lambda e: (e.exposures, e.replicated or 0))
    ordinary = "a striped green star on a white ground"
    code, out, _ = cryptomnesia(
        "detect", "bundled", "--prompt", entry.captions[0], "--prompt", ordinary, "-o", tmp_path, "--json"
    )
    report = json.loads(out)
    planted, plain = report["images"]
    assert code == 1
    assert planted["flagged"]
    assert planted["p_value"] <= 0.01
    assert 1 <= planted["first_step"] <= 50
    assert not plain["flagged"]
    assert plain["panel"] is None
    with Image.open(planted["panel"]) as panel:
        assert panel.width > 5 * 256  # generated, region, mitigated, planted, true region
    assert len(list(tmp_path.iterdir())) == 1


def test_the_demo_prints_a_table_and_says_where_its_pictures_are(cryptomnesia, tmp_path):
    (tmp_path / "panel-0099-seed-0.png").write_text("a panel of an earlier run")
    (tmp_path / "2024-seed-mine.png").write_text("of the user")
    code, out, err = cryptomnesia("demo", "-o", tmp_path)
    assert code == 0
    assert err == ""
    assert out.count("memorized?") >= 1
    assert out.count("ordinary") >= 6
    assert f"{out.count('memorized?')} panels in {tmp_path}" in " ".join(out.split())
    assert len(list(tmp_path.glob("panel-*.png"))) == out.count("memorized?")
    assert (tmp_path / "2024-seed-mine.png").exists()


def test_show_draws_the_grid(cryptomnesia, monkeypatch, tmp_path):
    monkeypatch.setattr("cryptomnesia.proving_ground.show._GENERATIONS", 1)
    code, _, _ = cryptomnesia("proving-ground", "show", "-o", tmp_path / "new" / "grid")
    assert code == 0
    with Image.open(tmp_path / "new" / "grid") as sheet:
        assert sheet.format == "PNG"


def test_detect_prints_a_row_per_prompt_and_image(cryptomnesia, model, calibration, tmp_path):
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt\na red circle\na blue star\n")
    code, out, err = cryptomnesia(
        "detect", model / "tiny", "--prompts", prompts, "--images-per-prompt", "2", "--seed", "5",
        "--calibration", calibration, "--rate", "0.02", *SETUP,
    )  # fmt: skip
    rows = [line for line in out.splitlines() if "a red circle" in line or "a blue star" in line]
    assert len(rows) == 4
    assert [row.split("│")[2].strip() for row in rows] == ["5", "6", "5", "6"]
    assert err == ""
    assert code == int("memorized?" in out)


def test_calibrate_makes_what_detect_takes(cryptomnesia, model, tmp_path):
    made = tmp_path / "deep" / "c.safetensors"
    arguments = ("--prompts", model / "reference.txt", "--batch-size", "34", "-o", made, *SETUP)
    code, out, err = cryptomnesia("calibrate", model / "tiny", *arguments)
    assert code == 0
    assert "150 references support it" in err
    assert "102 references; false-positive rates from 1.45% up" in out
    code, _, _ = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a red circle", "--calibration", made, "--rate", "0.02", *SETUP
    )
    assert code in (0, 1)


def test_the_mean_of_a_map_is_calibrated_on_demand(cryptomnesia, model, calibration, tmp_path):
    made = tmp_path / "c.safetensors"
    arguments = ("--prompts", model / "reference.txt", "--batch-size", "34", "-o", made, *SETUP)
    code, _, err = cryptomnesia("calibrate", model / "tiny", *arguments, "--detector", "collapse")
    assert code == 0, err
    asked = ("--prompt", "a red circle", "--detector", "collapse", "--rate", "0.02", "--json", *SETUP)
    code, out, err = cryptomnesia("detect", model / "tiny", "--calibration", made, *asked)
    assert code in (0, 1), err
    told = json.loads(out)
    assert told["detector"] == "collapse"
    assert told["images"][0]["score"] >= 0
    code, _, err = cryptomnesia("detect", model / "tiny", "--calibration", calibration, *asked)
    assert code == 2
    assert "knows no collapse" in err
    assert "or calibrate with `--detector collapse`" in err
    code, _, err = cryptomnesia("calibrate", model / "tiny", *arguments, "--detector", "bright-ending")
    assert code == 2
    assert "unknown detector 'bright-ending'" in err
    code, _, err = cryptomnesia("calibrate", model / "tiny", *arguments, "--detector", "collapse", "--guidance", "1")
    assert code == 2
    assert "collapse needs the unconditional branch" in err


def test_another_scheduler_is_mitigated_too(cryptomnesia, model, tmp_path):
    made = tmp_path / "c.safetensors"
    euler = ("--scheduler", "euler", *SETUP)
    cryptomnesia("calibrate", model / "tiny", "--prompts", model / "reference.txt", "-o", made, *euler)
    code, _, err = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a red circle", "--calibration", made, "--rate", "0.99",
        "-o", tmp_path / "out", *euler,
    )  # fmt: skip
    assert code == 1, err
    (panel,) = (tmp_path / "out").iterdir()
    with Image.open(panel) as picture:
        assert picture.width > 3 * 256  # generated, region, mitigated


BUNDLED = ["detect", "bundled", "--prompt", "a"]
TINY = ["detect", "TINY", "--prompt", "a", "--calibration", "CALIBRATION"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "bundled"], "give either --prompt"),
        (["detect", "bundled", "--prompt", " "], "got an empty --prompt"),
        (["detect", "bundled", "--prompts", "none.txt"], "no prompts file none.txt"),
        (["detect", "bundled", "--prompts", "p.parquet"], "expected a .txt, .csv or .jsonl"),
        (["detect", "no-such-model", "--prompt", "a", "--calibration", "CALIBRATION"], "no model 'no-such-model'"),
        (["detect", "nobody/nothing", "--prompt", "a", "--calibration", "CALIBRATION"], "cannot be loaded"),
        (["detect", "FOLDER", "--prompt", "a", "--calibration", "CALIBRATION"], "no model_index.json"),
        (["detect", "TINY", "--prompt", "a"], "needs a calibration"),
        (["detect", "TINY", "--prompt", "a", "--calibration", "none"], "no calibration file none"),
        ([*TINY], "steps is 50, calibrated 2"),
        ([*TINY, *SETUP], "needs at least 99 null"),
        (["detect", "bundled", "--prompt", "a " * 40], "tokens, the model takes 32"),
        ([*BUNDLED, "--guidance", "1", "--detector", "guidance-mean"], "needs the unconditional branch"),
        ([*BUNDLED, "--guidance", "1", "-o", "OUT"], "needs the unconditional branch"),
        ([*BUNDLED, "--detector", "tarot"], "unknown detector 'tarot'; known are stability"),
        ([*BUNDLED, "--scheduler", "tarot"], "unknown scheduler 'tarot'; known are own, ddim"),
        ([*BUNDLED, "--scheduler", "euler"], "scheduler is EulerDiscreteScheduler, calibrated DDIM"),
        ([*BUNDLED, "--rate", "2"], "false-positive rate 2"),
        ([*BUNDLED, "-o", "FILE"], "cannot write to"),
        (["calibrate", "TINY", "--prompts", "SHORT", "-o", "OUT"], "got 1 reference prompts"),
        (["proving-ground", "verify", "--bundle", "FOLDER"], "no manifest"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cryptomnesia, model, calibration, tmp_path, arguments, message):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "short.txt").write_text("a red circle")
    (tmp_path / "folder").mkdir()
    names = {
        "TINY": model / "tiny",
        "CALIBRATION": calibration,
        "FOLDER": tmp_path / "folder",
        "FILE": tmp_path / "file",
        "SHORT": tmp_path / "short.txt",
        "OUT": tmp_path / "out",
    }
    code, out, err = cryptomnesia(*[names.get(argument, argument) for argument in arguments])
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert any(part in err for part in message.split("|")), err
    assert not (tmp_path / "out").exists()


def test_a_pipeline_of_another_family_is_refused(cryptomnesia, calibration, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    code, _, err = cryptomnesia("detect", tmp_path, "--prompt", "a", "--calibration", calibration)
    assert code == 2
    assert "unknown family DiTPipeline; known are StableDiffusionPipeline" in err


def test_localize_draws_maps_and_with_a_calibration_masks(cryptomnesia, model, tmp_path):
    made = tmp_path / "maps.safetensors"
    chosen = ("--map", "score-difference", "--map", "score-difference-checkpoint", "--baseline", model / "tiny", *SETUP)
    reference = ("--prompts", model / "reference.txt", "--batch-size", "34")
    code, out, err = cryptomnesia("calibrate-maps", model / "tiny", *reference, "-o", made, *chosen)
    assert code == 0, err
    assert "score-difference, score-difference-checkpoint on 102 references" in out
    asked = ("--prompt", "a red circle", "--prompt", "a blue star", "-o", tmp_path / "out")
    code, out, err = cryptomnesia("localize", model / "tiny", *asked, *chosen, "--calibration", made, "--json")
    assert code == 0, err
    maps = json.loads(out)["maps"]
    assert [(each["prompt"], each["map"]) for each in maps] == [
        (prompt, name)
        for prompt in ("a red circle", "a blue star")
        for name in ("score-difference", "score-difference-checkpoint")
    ]
    assert all(0 <= each["fraction"] <= 1 and 0 < each["p_value"] <= 1 for each in maps)
    assert all(0 < each["mean_p_value"] <= 1 and each["error"] is None for each in maps)
    assert maps[3]["panel"].endswith("maps-0001-seed-0.png")
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == [f"maps-000{n}-seed-0.{kind}" for n in (0, 1) for kind in ("png", "safetensors")]
    tensors = load_file(tmp_path / "out" / "maps-0001-seed-0.safetensors")
    assert tensors["score-difference"].shape == (8, 8)
    assert tensors["score-difference/mask"].float().mean().item() == pytest.approx(maps[2]["fraction"])
    with Image.open(tmp_path / "out" / "maps-0000-seed-0.png") as panel:
        assert panel.width > 4 * 256  # generated, two maps, two masks
    # without a calibration there are maps only
    code, out, _ = cryptomnesia("localize", model / "tiny", *asked, *SETUP, "--probes", "16")
    assert code == 0
    assert "collapse" in out
    tensors = load_file(tmp_path / "out" / "maps-0000-seed-0.safetensors")
    assert set(tensors) == {"collapse", "collapse/error"}
    # what an earlier run left makes room
    code, _, _ = cryptomnesia("localize", model / "tiny", "--prompt", "a", "-o", tmp_path / "out", *SETUP)
    assert code == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--map", "tarot"], "unknown map 'tarot'"),
        (["--map", "curvature-checkpoint"], "unknown map 'curvature-checkpoint'"),
        (["--map", "score-difference-checkpoint"], "needs a less-trained checkpoint"),
        (["--at", "7"], "got the evaluation 7 of a run of 2"),
        (["--probes", "20"], "20 orthogonal probes in groups of 8"),
        (["--at", "-0.5"], "got the evaluation -0.5; give a whole number"),
        (["--guidance", "1"], "needs the unconditional branch"),
        (["--calibration", "nowhere"], "no map calibration file nowhere"),
        (["--baseline", "nowhere"], "got --baseline but no map that uses it"),
        (["--rate", "0.1"], "--rate, --smooth and --smallest are of masks, which need a --calibration"),
        (["--wanted", "-1"], "got a wanted error of -1"),
    ],
)
def test_localize_explains_what_it_cannot_do(cryptomnesia, model, tmp_path, arguments, message):
    code, out, err = cryptomnesia(
        "localize", model / "tiny", "--prompt", "a red circle", "-o", tmp_path / "out", *SETUP, *arguments
    )
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err


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


def test_a_calibration_is_made_in_the_dtype_of_the_service(cryptomnesia, model, calibration, tmp_path):
    made = tmp_path / "half.safetensors"
    given = [model / "tiny", "--prompts", model / "reference.txt", *SETUP]
    code, _, said = cryptomnesia("calibrate", *given, "--dtype", "bfloat16", "-o", made)
    assert code == 0, said
    (tmp_path / "prompts.txt").write_text("a blue star\n")
    again = [model / "tiny", "--prompts", tmp_path / "prompts.txt", *SETUP, "--calibration"]
    code, _, said = cryptomnesia("detect", *again, made, "--dtype", "bfloat16", "--rate", 0.05)
    assert code in (0, 1), said
    code, _, said = cryptomnesia("detect", *again, made, "--rate", 0.05)
    assert code == 2
    assert "dtype is float32, calibrated bfloat16" in said
    code, _, said = cryptomnesia("detect", *again, made, "--dtype", "tarot")
    assert code == 2
    assert "got the unknown dtype 'tarot'; known are float32, float16, bfloat16" in said
