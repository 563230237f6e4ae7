import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.testing.miniatures import stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from single_files import write_single_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with miniatures, a trained UNet, and a single file."""
    folder = tmp_path_factory.mktemp("models")
    stable_diffusion().save_pretrained(folder / "sd")
    stable_diffusion_xl().save_pretrained(folder / "sdxl")
    stable_diffusion_3().save_pretrained(folder / "sd3")
    trained().save_pretrained(folder / "checkpoint-500" / "unet")
    trained().save_pretrained(folder / "half" / "unet_ema", variant="fp16")
    write_single_file(stable_diffusion(), folder / "single.safetensors")
    return folder


def trained():
    unet = stable_diffusion().unet
    generator = torch.Generator().manual_seed(5)
    for weights in unet.parameters():
        weights.data += 0.01 * torch.randn(weights.shape, generator=generator)
    return unet


def same(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "given",
    [
        "checkpoint-500",
        "checkpoint-500/unet",
        "checkpoint-500/unet/diffusion_pytorch_model.safetensors",
        "half",
        "half/unet_ema",
    ],
)
def test_a_training_checkpoint_takes_the_place_of_the_own_network(folder, given):
    pipe = load_pipeline(folder / "sd", device="cpu", unet=folder / given)
    assert same(pipe.unet, trained())
    assert same(pipe.vae, stable_diffusion().vae)


def test_a_transformer_of_a_checkpoint(folder):
    pipe = load_pipeline(folder / "sd3", device="cpu", transformer=folder / "sd3" / "transformer")
    assert same(pipe.transformer, stable_diffusion_3().transformer)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (
            "sd",
            {"unet": "sdxl/unet"},
            "does not fit the model: its cross_attention_dim is 64, that of",
        ),
        ("sd", {"unet": "sd/text_encoder"}, "holds a CLIPTextModel, the model's unet is a UNet2DConditionModel; give"),
        ("sd", {"transformer": "sd3"}, "got --transformer, and a StableDiffusionPipeline has no transformer"),
        ("sd3", {"unet": "checkpoint-500"}, "got --unet, and a StableDiffusion3Pipeline has no unet; leave it out"),
        ("sd", {"unet": "sd/model_index.json"}, "which is no file of weights; give a folder or a .safetensors file"),
        ("sd", {"unet": "sd/vae/.."}, None),
        ("sd", {"unet": "sd3"}, "is no unet: it has neither a config.json nor a folder unet or unet_ema"),
        ("sd", {"unet": "nosuch"}, "no folder .*nosuch for --unet; give the folder of a training checkpoint"),
    ],
)
def test_networks_that_do_not_fit_are_refused(folder, model, arguments, message):
    given = {name: folder / value for name, value in arguments.items()}
    if message is None:
        # a whole diffusers folder holds a unet, too
        assert same(load_pipeline(folder / model, device="cpu", **given).unet, stable_diffusion().unet)
        return
    with pytest.raises(UsageError, match=message):
        load_pipeline(folder / model, device="cpu", **given)


def test_a_checkpoint_with_two_networks_is_ambiguous(folder, tmp_path):
    for name in ("unet", "unet_ema"):
        shutil.copytree(folder / "checkpoint-500" / "unet", tmp_path / name)
    with pytest.raises(UsageError, match=r"holds both unet and unet_ema; give .*unet or .*unet_ema$"):
        load_pipeline(folder / "sd", device="cpu", unet=tmp_path)
    broken = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(broken)
    del tensors["conv_out.bias"]
    save_file(tensors, broken)
    with pytest.raises(UsageError, match=r"unet .* weights are missing, which would be random .*'conv_out\.bias'"):
        load_pipeline(folder / "sd", device="cpu", unet=tmp_path / "unet")


def test_a_model_in_a_single_file(folder, tmp_path):
    file = folder / "single.safetensors"
    pipe = load_pipeline(file, device="cpu", base=folder / "sd", safety_checker=None)
    expected = stable_diffusion()
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(pipe, part), getattr(expected, part))
    torch.save({"state_dict": load_file(file)}, tmp_path / "single.ckpt")
    assert same(load_pipeline(tmp_path / "single.ckpt", device="cpu", base=folder / "sd").unet, expected.unet)
    # a network alone can be taken out of a whole model
    assert same(load_pipeline(folder / "sd", device="cpu", unet=file).unet, expected.unet)


def test_a_single_file_that_cannot_be_used_is_explained(folder, tmp_path):
    file = folder / "single.safetensors"
    with pytest.raises(UsageError, match="or give --base FOLDER, a diffusers folder of the model"):
        load_pipeline(file, device="cpu", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(UsageError, match=r"holds a StableDiffusionPipeline, the base .* is a StableDiffusionXL"):
        load_pipeline(file, device="cpu", base=folder / "sdxl")
    with pytest.raises(UsageError, match=r"got the variant 'fp16' with .*, which is a single file; leave it out"):
        load_pipeline(file, device="cpu", base=folder / "sd", variant="fp16")
    with pytest.raises(UsageError, match="got the unknown argument tarot"):
        load_pipeline(file, device="cpu", base=folder / "sd", tarot=1)
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[:-1]), tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match="weights are missing"):
        load_pipeline(tmp_path / "part.safetensors", device="cpu", base=folder / "sd")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UsageError, match="holds no weights that can be read"):
        load_pipeline(tmp_path / "cut.safetensors", device="cpu", base=folder / "sd")
    unet = folder / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UsageError, match="is no single file of a model that is known here"):
        load_pipeline(unet, device="cpu")
