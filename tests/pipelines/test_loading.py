import copy
import inspect
import json
import logging
import re
import shutil

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    EDMEulerScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.calibration.stored import resolved
from cryptomnesia.pipelines.loading import (
    FROM_PRETRAINED,
    SCHEDULERS,
    check_exists,
    model_folder,
    quiet,
    set_call_defaults,
)
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLE, BUNDLES
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.testing.miniatures import flux, stable_diffusion, stable_diffusion_3
from cryptomnesia.testing.miniatures.parts import unet

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def replace(path, before, after):
    """Change a text in a file."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


LIBRARIES = (diffusers_logging, transformers_logging)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A miniature that was saved with a scheduler of its own."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipe = stable_diffusion()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundled():
    return load_pipeline("bundled", device="cpu")


def switch(bars):
    """Switch the progress bars of diffusers, transformers and downloads."""
    for library, on in zip(LIBRARIES, bars[:2], strict=True):
        (library.enable_progress_bar if on else library.disable_progress_bar)()
    # that of transformers changes the bars of downloads, so these come last
    (enable_progress_bars if bars[2] else disable_progress_bars)()


def bars_now():
    return (*(library.is_progress_bar_enabled() for library in LIBRARIES), not are_progress_bars_disabled())


@pytest.fixture
def _restored():
    before, levels = bars_now(), [library.get_verbosity() for library in LIBRARIES]
    yield
    switch(before)
    for library, level in zip(LIBRARIES, levels, strict=True):
        library.set_verbosity(level)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("bars", [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)])
def test_loading_leaves_progress_bars_and_notices_as_they_were(folder, bars, capfd):
    switch(bars)
    for library in LIBRARIES:
        library.set_verbosity(logging.INFO)
    load_pipeline(str(folder), device="cpu")
    assert bars_now() == bars
    assert [library.get_verbosity() for library in LIBRARIES] == [logging.INFO] * 2
    assert capfd.readouterr() == ("", "")
    with quiet():
        assert not any(bars_now())
    assert bars_now() == bars
    with pytest.raises(UsageError, match="no model"), quiet():
        check_exists("nowhere")
    assert bars_now() == bars


def test_a_model_keeps_its_own_scheduler(folder, bundled):
    pipe = load_pipeline(str(folder), device="cpu")
    assert type(pipe.scheduler) is PNDMScheduler
    assert dict(pipe.scheduler.config)["skip_prk_steps"]
    assert pipe.device == torch.device("cpu")
    assert pipe.dtype == torch.float32
    assert type(bundled.scheduler) is PNDMScheduler
    assert inspect.signature(load_pipeline).parameters["scheduler"].default == "own"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_scheduler_is_made_from_the_configuration_of_the_own_one(folder, name):
    pipe = load_pipeline(str(folder), scheduler=name, device="cpu", dtype="bfloat16")
    assert type(pipe.scheduler).__name__ == SCHEDULERS[name]
    assert pipe.dtype == torch.bfloat16
    assert pipe.scheduler.config["beta_schedule"] == "scaled_linear"
    assert not pipe.scheduler.config.get("clip_sample")


def test_what_cannot_be_loaded_is_explained(folder, tmp_path):
    for model, settings, message in [
        (str(folder), {"scheduler": "tarot"}, "unknown scheduler 'tarot'; known are own, ddim, pndm"),
        (str(folder), {"dtype": "int8"}, "unknown dtype 'int8'; known are float32, float16, bfloat16"),
        ("nowhere", {}, "no model 'nowhere'; give a local diffusers folder, a hub id such as org/name, or bundled"),
        ("./no/where", {}, r"no model './no/where'"),
        ("bundled:velmora", {}, "no bundled model of a ground 'velmora'; there are those of "),
        ("bundled:", {}, "no bundled model of a ground ''; there are those of "),
        ("", {}, "got an empty name of a model; give a local diffusers folder, a hub id such as org/name, or bundled"),
        (" ", {}, "got an empty name of a model"),
        (str(tmp_path), {}, "is no diffusers folder: it has no model_index.json"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_pipeline(model, device="cpu", **settings)
    assert check_exists("org/name") is None
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "TarotPipeline"}))
    with pytest.raises(UsageError, match=r"the unknown family TarotPipeline; known are .*DDIMPipeline"):
        load_pipeline(str(tmp_path), device="cpu")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be loaded: "):
        load_pipeline(str(tmp_path), device="cpu")


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A miniature of SD3, which was saved without its third encoder."""
    folder = tmp_path_factory.mktemp("model") / "flow"
    stable_diffusion_3().save_pretrained(folder)
    return folder


def test_the_known_arguments_are_those_of_diffusers():
    source = inspect.getsource(DiffusionPipeline.from_pretrained) + inspect.getsource(DiffusionPipeline.download)
    taken = set(re.findall(r"kwargs\.pop\(\"(\w+)\"", source))
    assert taken - {"torch_dtype", "dtype", "revision", "variant"} <= FROM_PRETRAINED
    assert {name for name in FROM_PRETRAINED if f'"{name}"' not in source} == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_safetensor": True}, r"unknown argument use_safetensor \(did you mean use_safetensors\?\); leave it out"),
        ({"torch_dtype": torch.float16}, r"unknown argument torch_dtype \(did you mean dtype\?\)"),
        ({"tarot": 1}, "unknown argument tarot; .* a part of a StableDiffusionPipeline: vae, text_encoder, "),
        ({"device": "cuda:7"}, "got the device cuda:7, and this machine has .*; give another, for instance cpu"),
        ({"device": "gpu"}, "got the unknown device 'gpu'; give cpu, cuda, cuda:1 or mps"),
        ({"device": "meta"}, "got the device 'meta'; give cpu, cuda"),
        ({"dtype": torch.int8}, "got the unknown dtype torch.int8; known are float32"),
        ({"without": "unet"}, "a StableDiffusionPipeline cannot do without 'unet'; give one of feature_extractor"),
        ({"without": ["safety_checker"], "safety_checker": 1}, "got safety_checker, and without='safety_checker'"),
        ({"transformer": "nosuch"}, "no folder nosuch for --transformer; give the folder of a training checkpoint"),
        ({"revision": "v2"}, "got the revision 'v2' with .*, which is a local folder; leave it out"),
        ({"base": "org/name"}, "got base org/name with .*, which is no single file; leave it out"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(folder, monkeypatch, arguments, message):
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UsageError, match=message) as refused:
        load_pipeline(str(folder), **{"device": "cpu", **arguments})
    assert "\n" not in str(refused.value)


def test_arguments_of_from_pretrained_and_parts_are_passed_on(folder):
    own = stable_diffusion("v_prediction").unet
    pipe = load_pipeline(
        folder, device="cpu", dtype=torch.bfloat16, use_safetensors=True, safety_checker=None, unet=own
    )
    assert pipe.unet is own
    assert pipe.vae.dtype == torch.bfloat16


def test_sd3_without_t5(flow):
    pipe = load_pipeline(flow, device="cpu", without="text_encoder_3")
    assert (pipe.text_encoder_3, pipe.tokenizer_3) == (None, None)
    assert load_pipeline(flow, device="cpu").text_encoder_3 is None


def test_variants(tmp_path, folder):
    stable_diffusion().save_pretrained(tmp_path / "half", variant="fp16")
    for where, variant, message in [
        (tmp_path / "half", None, "has its weights as the variant fp16 only; give --variant fp16"),
        (tmp_path / "half", "bf16", "got the variant 'bf16', and it has the variants fp16; give one that it has"),
        (folder, "fp16", "got the variant 'fp16', and it has no variants; give one that it has, or leave"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_pipeline(where, device="cpu", variant=variant)
    pipe = load_pipeline(tmp_path / "half", device="cpu", variant="fp16")
    assert torch.equal(pipe.unet.conv_in.weight, stable_diffusion().unet.conv_in.weight)


def without(file, letters):
    """Take the first tensor out whose name has these letters in it."""
    tensors = load_file(file)
    del tensors[next(name for name in sorted(tensors) if letters in name)]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            UNET,
            lambda path: without(path, "conv_out"),
            r"weights are missing, which would .*'conv_out\.bias'",
        ),
        (TEXT, lambda path: without(path, "norm2"), r"weights are missing, which would be random .*layer_norm2"),
        (UNET, lambda path: path.write_bytes(path.read_bytes()[:5000]), r"safetensors is damaged or incomplete; copy"),
        (TEXT, lambda path: path.write_bytes(path.read_bytes()[:5000]), r"safetensors is damaged or incomplete; copy"),
        (UNET, lambda path: path.write_text("version https://git-lfs"), r"is only a pointer of Git LFS; run `git lfs"),
        (UNET, lambda path: path.unlink(), r"no file named diffusion_pytorch_model.* found in directory .*; copy or"),
        (
            "unet/config.json",
            lambda path: replace(path, "[\n    8,\n    16", "[\n8,\n32"),
            "weights have other shapes than",
        ),
        (
            "text_encoder/config.json",
            lambda path: replace(path, '"hidden_size": 32', '"hidden_size": 64'),
            "other shapes",
        ),
        ("unet/config.json", lambda path: path.write_text("{"), "cannot be loaded: "),
    ],
)
def test_damaged_folders_are_refused_in_one_line(folder, tmp_path, file, change, message):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    change(copied / file)
    with pytest.raises(UsageError, match=message) as refused:
        load_pipeline(copied, device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet", "it holds a UNet2DConditionModel, so give it as --unet, and the model it belongs to"),
        ("text_encoder", "it holds a CLIPTextModel, which alone makes no pictures; give the folder that has one"),
        ("..", "give the folder .*tiny, which has one"),
        ("model_index.json", "is no file of weights; give a diffusers folder, or a .safetensors"),
        ("nosuch.safetensors", "no file .*nosuch.safetensors; give the path of a model in a single file"),
    ],
)
def test_what_is_no_diffusers_folder_is_named(folder, part, message):
    with pytest.raises(UsageError, match=message):
        load_pipeline(folder / part, device="cpu")


def test_flow_models_take_no_other_scheduler(tmp_path):
    flux().save_pretrained(tmp_path / "flow")
    with pytest.raises(
        UsageError, match=r"is trained on rectified flow, which ddim does not solve; give the scheduler own"
    ):
        load_pipeline(str(tmp_path / "flow"), scheduler="ddim", device="cpu")


def test_every_bundled_model_has_a_name():
    assert model_folder("bundled") == model_folder("bundled:scenes") == BUNDLE / "pipeline"
    for ground in BUNDLES.iterdir():
        pipe = load_pipeline(f"bundled:{ground.name}", device="cpu")
        Manifest.load(ground).check(pipe)


def test_the_bundled_model_says_its_own_guidance(bundled):
    signature = inspect.signature(type(bundled).__call__)
    assert signature.parameters["guidance_scale"].default == 1.5
    stock = inspect.signature(StableDiffusionPipeline.__call__).parameters
    assert [*signature.parameters] == [*stock]
    for name in stock.keys() - {"guidance_scale"}:
        assert signature.parameters[name].default == stock[name].default
    assert isinstance(bundled, StableDiffusionPipeline)
    assert type(bundled).__name__ == type(bundled).__qualname__ == "StableDiffusionPipeline"
    assert type(bundled).__module__ == StableDiffusionPipeline.__module__
    assert Setup.of(bundled, {}).sampling.guidance == 1.5
    assert Setup.of(bundled, {"guidance_scale": 4.0}).sampling.guidance == 4.0
    # other pipelines of its class are not changed
    assert inspect.signature(type(stable_diffusion()).__call__).parameters["guidance_scale"].default == 7.5


def test_the_calibration_of_the_bundled_model_is_found_and_fits(bundled):
    calibration = resolved(None, bundled)
    calibration.check(Setup.of(bundled, {}))
    assert calibration.evaluations == 51
    with pytest.raises(UsageError, match=r"guidance is 2\.0, calibrated 1\.5"):
        calibration.check(Setup.of(bundled, {"guidance_scale": 2.0}))


@pytest.fixture
def tiny():
    """A miniature whose call has another default guidance, and the guidance that its calls used."""
    pipe = stable_diffusion()
    set_call_defaults(pipe, guidance_scale=1.5)
    return pipe


def generated(pipe, *args, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return pipe(*args, **kwargs, num_images_per_prompt=1, generator=generator, output_type="latent").images


def test_guidance_can_still_be_given_by_name_and_by_position(tiny):
    stock = stable_diffusion()
    default = generated(tiny, "a red circle", num_inference_steps=2)
    assert tiny.guidance_scale == 1.5
    assert torch.equal(default, generated(stock, "a red circle", num_inference_steps=2, guidance_scale=1.5))
    expected = generated(stock, "a red circle", num_inference_steps=2, guidance_scale=4.0)
    assert torch.equal(generated(tiny, "a red circle", num_inference_steps=2, guidance_scale=4.0), expected)
    # height, width, steps, timesteps and sigmas come before guidance
    assert torch.equal(generated(tiny, "a red circle", None, None, 2, None, None, 4.0), expected)
    assert tiny.guidance_scale == 4.0
    assert torch.equal(generated(tiny, "a red circle", None, None, 2), default)


def test_a_pipeline_with_other_defaults_is_saved_as_any_other(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is StableDiffusionPipeline
    again.set_progress_bar_config(disable=True)
    assert torch.equal(
        generated(again, "a red circle", num_inference_steps=2, guidance_scale=1.5),
        generated(tiny, "a red circle", num_inference_steps=2),
    )


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, AutoPipelineForImage2Image])
def test_other_pipelines_are_made_from_one_with_other_defaults(tiny, kind):
    made = kind.from_pipe(tiny)
    assert type(made) is StableDiffusionImg2ImgPipeline
    assert made.unet is tiny.unet
    back = type(tiny).from_pipe(made)
    assert isinstance(back, StableDiffusionPipeline)
    assert type(StableDiffusionPipeline.from_pipe(tiny)) is StableDiffusionPipeline


def test_a_copy_and_a_second_change_of_defaults_work(tiny):
    copied = copy.deepcopy(tiny)
    set_call_defaults(copied, num_inference_steps=2)
    defaults = inspect.signature(type(copied).__call__).parameters
    assert (defaults["guidance_scale"].default, defaults["num_inference_steps"].default) == (1.5, 2)
    assert torch.equal(generated(copied, "a red circle"), generated(tiny, "a red circle", num_inference_steps=2))
    assert inspect.signature(type(tiny).__call__).parameters["num_inference_steps"].default == 50


def test_a_scheduler_that_does_not_solve_the_model_is_refused_also_if_it_was_asked_for(tmp_path):
    continuous = stable_diffusion("v_prediction")
    continuous.scheduler = EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0)
    continuous.save_pretrained(tmp_path / "edm")
    assert type(load_pipeline(str(tmp_path / "edm")).scheduler).__name__ == "EDMEulerScheduler"
    with pytest.raises(UsageError, match="continuous σ"):
        load_pipeline(str(tmp_path / "edm"), scheduler="ddim")
    consistency = stable_diffusion()
    consistency.register_modules(unet=unet(time_cond_proj_dim=16), scheduler=LCMScheduler())
    consistency.save_pretrained(tmp_path / "lcm")
    assert type(load_pipeline(str(tmp_path / "lcm")).scheduler).__name__ == "LCMScheduler"
    with pytest.raises(UsageError, match="latent consistency model, which DDIMScheduler does not solve"):
        load_pipeline(str(tmp_path / "lcm"), scheduler="ddim")
