from pathlib import Path

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.pipelines.origins import adapters
from cryptomnesia.pipelines.origins.adapters import Lora
from cryptomnesia.pipelines.origins.notices import quiet
from cryptomnesia.testing.miniatures import stable_diffusion, stable_diffusion_xl, unconditional
from lora_files import write_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Miniatures and LoRAs of them, as diffusers' training scripts and PEFT write them."""
    folder = tmp_path_factory.mktemp("loras")
    for name, pipe in (("sd", stable_diffusion()), ("sdxl", stable_diffusion_xl()), ("plain", unconditional())):
        pipe.save_pretrained(folder / name)
    write_lora(folder / "first", stable_diffusion(), "to_q", "to_v", seed=1, text=["q_proj"])
    write_lora(folder / "second", stable_diffusion(), "to_k", seed=2)
    write_lora(folder / "wide", stable_diffusion_xl(), "to_k", seed=3)
    return folder


def picture(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle", num_inference_steps=2, generator=generator, output_type="latent").images


def loaded(folder, *loras):
    return load_pipeline(folder / "sd", device="cpu", lora=list(loras))


def test_scales(folder):
    plain, full, half, none = (
        picture(loaded(folder, *given))
        for given in ([], [f"{folder / 'first'}"], [f"{folder / 'first'}:0.5"], [(folder / "first", 0)])
    )
    assert torch.equal(none, plain)
    assert torch.equal(picture(loaded(folder, folder / "first" / "pytorch_lora_weights.safetensors")), full)
    assert not torch.equal(full, plain)
    assert not torch.equal(half, plain)
    assert not torch.equal(half, full)


def test_several_are_switched_on_as_in_diffusers(folder):
    pipe = loaded(folder, f"{folder / 'first'}:0.5", (folder / "second", 2))
    assert pipe.get_active_adapters() == ["lora_0", "lora_1"]
    own = StableDiffusionPipeline.from_pretrained(folder / "sd")
    with quiet():
        own.load_lora_weights(folder / "first", adapter_name="a")
        own.load_lora_weights(folder / "second", adapter_name="b")
    own.set_adapters(["a", "b"], [0.5, 2.0])
    assert torch.equal(picture(pipe), picture(own))


def test_an_adapter_that_peft_saved(folder, tmp_path):
    pipe = stable_diffusion()
    torch.manual_seed(4)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False)
    peft.get_peft_model(pipe.unet, config).save_pretrained(tmp_path)
    expected = picture(pipe)
    assert torch.equal(picture(loaded(folder, tmp_path)), expected)
    assert not torch.equal(picture(loaded(folder, (tmp_path, 0.5))), expected)


def renamed(folder, path, before):
    tensors = load_file(folder / "first" / "pytorch_lora_weights.safetensors")
    save_file({name.replace(before, "tarot"): value for name, value in tensors.items()}, path)
    return path


def test_a_lora_that_does_not_fit_is_refused(folder, tmp_path):
    unet = folder / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folder / "second" / "pytorch_lora_weights.safetensors").read_bytes()[:1000])
    for model, lora, message in [
        ("sd", folder / "wide", "does not fit this StableDiffusionPipeline; give one that was trained on this model"),
        (
            "sd",
            renamed(folder, tmp_path / "part.safetensors", "mid_block"),
            "8 of its 36 tensors belong to nothing",
        ),
        ("sd", renamed(folder, tmp_path / "none.safetensors", "e"), "36 of its 36 tensors belong to nothing in it"),
        ("plain", folder / "first", "a DDIMPipeline takes no LoRA; leave it out"),
        ("sd", unet, "cannot be loaded: Invalid LoRA checkpoint"),
        ("sd", cut, "cannot be loaded: "),
        ("sd", folder / "sd", "holds no .safetensors file; give the file itself"),
        ("sd", "nosuch.safetensors:0.5", "no LoRA nosuch.safetensors; give a file, a folder, or a hub id"),
        ("sd", f"{folder / 'first'}:strong", "with the scale 'strong'; give a number, for instance .*first:0.8"),
        ("sd", f"{folder / 'first'}:nan", "with the scale nan; give a finite number"),
        ("sd", 5, "got lora=5; give a path, PATH:SCALE, or a list of these"),
        ("sd", [("a", "b")], r"got the LoRA \('a', 'b'\); give a path and a number"),
        ("sd", ":0.5", "without a path; give PATH or PATH:SCALE"),
    ]:
        with pytest.raises(UsageError, match=message) as refused:
            load_pipeline(folder / model, device="cpu", lora=lora)
        assert "\n" not in str(refused.value)


def test_a_lora_in_the_place_of_a_model_is_named(folder):
    with pytest.raises(UsageError, match="it holds a LoRA, so give it as --lora, and the model that it was trained on"):
        load_pipeline(folder / "first", device="cpu")
    with pytest.raises(UsageError, match="is a LoRA; give it as --lora"):
        load_pipeline(folder / "first" / "pytorch_lora_weights.safetensors", device="cpu")


def test_peft_is_asked_for_before_a_model_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="a LoRA needs the package peft, which is not installed; pip install peft"):
        load_pipeline("nosuch/model", lora=folder / "first")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("style.safetensors", ("style.safetensors", 1.0)),
        ("style.safetensors:0.8", ("style.safetensors", 0.8)),
        (r"C:\loras\style.safetensors", (r"C:\loras\style.safetensors", 1.0)),
        (r"C:\loras\style.safetensors:-.5", (r"C:\loras\style.safetensors", -0.5)),
        ("org/name:1e-1", ("org/name", 0.1)),
        ("org/name/file.safetensors", ("org/name/file.safetensors", 1.0)),
        (Path("a:2"), ("a", 2.0)),
    ],
)
def test_path_and_scale_are_told_apart(text, expected):
    lora = Lora.of(text)
    assert (lora.source, lora.scale) == expected


def test_a_path_with_colons_is_a_path(tmp_path):
    (tmp_path / "a:2").mkdir()
    assert Lora.of(tmp_path / "a:2") == Lora(str(tmp_path / "a:2"), 1.0)
    assert Lora.of(f"{tmp_path}/a:2:0.5") == Lora(str(tmp_path / "a:2"), 0.5)
    assert Lora("org/name/sub/file.safetensors").located() == ("org/name", "sub/file.safetensors")
    assert Lora("org/name").located() == ("org/name", None)
