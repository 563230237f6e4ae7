"""Options that say how a model is loaded and called, and which prompts are read."""

import json

import pytest

from cryptomnesia import load_pipeline, localize
from cryptomnesia.settings import LocalizeSettings
from cryptomnesia.testing.miniatures import stable_diffusion
from lora_files import write_lora


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    write_lora(folder, stable_diffusion(), "to_q", "to_v", seed=1)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(f"description,text\na blue star,no\n{'red ' * 40},no\n")
    return path


def test_all_of_them_reach_the_images(cryptomnesia, model, setup, lora, prompts, tmp_path):
    code, out, err = cryptomnesia(
        "localize", model / "tiny", "--prompts", prompts, "--column", "description", "--long", "skip",
        "--lora", f"{lora}:0.5", "--unet", model / "tiny", "--option", "eta=0.5", "--device", "cpu",
        "--localizer", "guidance-map", "-o", tmp_path / "maps", "--json", *setup,
    )  # fmt: skip
    assert code == 0
    assert err.startswith("warning: 1 of 2 prompts are too long and left out; the first, 'red red")
    report = json.loads(out)
    assert report["options"] == {"eta": 0.5}
    (row,) = report["maps"]
    assert (row["prompt"], row["truncated"]) == ("a blue star", False)
    pipe = load_pipeline(model / "tiny", device="cpu", lora=(lora, 0.5))
    call = {"num_inference_steps": 2, "guidance_scale": 2.0, "eta": 0.5}
    (located,) = localize(pipe, ["a blue star"], localizers="guidance-map", **call)
    assert row["mean"] == pytest.approx(located.maps["guidance-map"].mean().item())
    (other,) = localize(load_pipeline(model / "tiny", device="cpu"), ["a blue star"], localizers="guidance-map", **call)
    assert row["mean"] != pytest.approx(other.maps["guidance-map"].mean().item(), rel=1e-3)


def test_a_finding_says_that_its_prompt_was_cut_off(cryptomnesia_once, model, calibration_file, setup, prompts):
    code, out, err = cryptomnesia_once(
        "detect", model / "tiny", "--prompts", prompts, "--column", "description", "--calibration", calibration_file,
        "--fpr", "0.5", "--json", *setup,
    )  # fmt: skip
    assert code in (0, 1)
    assert [image["truncated"] for image in json.loads(out)["images"]] == [False, True]
    assert "1 of 2 prompts are too long and cut off, as diffusers does it; the first, 'red red" in err
    # diffusers would print the rest of the prompt
    assert "input was truncated" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--option", "eta"], "got the option 'eta'; give KEY=VALUE, for instance eta=0.5"),
        (
            ["--option", "guidance_scale=3"],
            "guidance_scale, which has a setting of its own; give --guidance",
        ),
        (["--option", "eta=1", "--option", "eta=0"], "got the option eta twice; give it once"),
        (["--option", "etta=1"], "a StableDiffusionPipeline takes no etta; leave it out"),
        (["--option", "generator=1"], "got generator, which the library gives for every image"),
        (["--option", "clip_skip=two"], "got clip_skip='two', and a StableDiffusionPipeline expects int | None"),
        (["--lora", "nosuch.safetensors:1"], "no LoRA nosuch.safetensors; give a file, a folder, or a hub id"),
        (["--unet", "nosuch"], "no folder nosuch for --unet"),
        (["--without", "vae"], "cannot do without 'vae'; give one of"),
        (["--variant", "fp16"], "got the variant 'fp16', and it has no variants"),
        (["--device", "cuda:9"], "got the device cuda:9, and this machine has"),
        (["--column", "text"], "got column without a file of prompts"),
        (["--long", "error", "--prompt", "red " * 40], "has 42 tokens, the model takes 32; shorten it"),
    ],
)
def test_what_cannot_be_used_is_one_line(cryptomnesia, model, calibration_file, setup, options, message):
    code, out, err = cryptomnesia(
        "detect", model / "tiny", "--prompt", "a", "--calibration", calibration_file, *setup, *options
    )
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_options_in_a_settings_file_and_the_environment(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('lora = ["a.safetensors:0.5", "b.safetensors"]\n[option]\neta = 0.5\nprompt_2 = "a ring"\n')
    settings = LocalizeSettings.resolve({}, file, environment={"CRYPTOMNESIA_WITHOUT": "text_encoder_3"})
    assert settings.lora == ["a.safetensors:0.5", "b.safetensors"]
    assert settings.option == ["eta=0.5", 'prompt_2="a ring"']
    assert settings.without == ["text_encoder_3"]
