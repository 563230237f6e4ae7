"""Checkpoints as trainers write them: real small files."""

import json
import logging
import os
import shutil
import threading
import time
from contextlib import suppress

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.finetuning.checkpoints import check_same_base, checkpoints_in, unfinished_in, watching
from cryptomnesia.finetuning.weight_files import UnfinishedError, header_of
from cryptomnesia.testing.miniatures import stable_diffusion, stable_diffusion_3, stable_diffusion_xl, unconditional
from lora_files import layers, write_lora
from single_files import write_single_file

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base and what trainers make of it."""
    folder = tmp_path_factory.mktemp("made")
    stable_diffusion().save_pretrained(folder / "base")
    write_lora(folder / "lora", stable_diffusion(), "to_q", seed=1)
    write_lora(folder / "later", stable_diffusion(), "to_q", seed=2)
    trained(1).unet.save_pretrained(folder / "unet")
    trained(2).unet.save_pretrained(folder / "averaged")
    trained(3).text_encoder.save_pretrained(folder / "text_encoder")
    trained(4).save_pretrained(folder / "pipeline")
    write_single_file(trained(5), folder / "whole.safetensors")
    write_kohya(folder / "kohya.safetensors", seed=3)
    return folder


def trained(seed):
    """A base that was trained a little further."""
    pipe, generator = stable_diffusion(), torch.Generator().manual_seed(seed)
    for part in (pipe.unet, pipe.text_encoder):
        for weights in part.parameters():
            weights.data += 0.01 * torch.randn(weights.shape, generator=generator)
    return pipe


def write_kohya(path, *, seed, **metadata):
    """A LoRA with the names of tensors and the metadata that kohya-ss writes."""
    tensors = {}
    for name, value in layers(stable_diffusion().unet, "to_q", seed=seed).items():
        place, _, which = name.removesuffix(".weight").rpartition(".lora")
        module = f"lora_unet_{place.removeprefix('unet.').replace('.', '_')}"
        down = which in ("_A", ".down")
        tensors[f"{module}.lora_{'down' if down else 'up'}.weight"] = value.contiguous()
        tensors[f"{module}.alpha"] = torch.tensor(4.0)
    save_file(tensors, path, metadata=metadata or None)


def put(made, folder, **copies):
    """Copy what was made into a folder: place → name."""
    for place, name in copies.items():
        target = folder / place.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = made / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def steps(folder):
    return [(one.name, one.step, one.kind, one.final) for one in checkpoints_in(folder)]


def same(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_lora_of_diffusers_scripts(made, tmp_path):
    for step, name in ((1000, "later"), (500, "lora")):
        (folder := tmp_path / f"checkpoint-{step}").mkdir()
        shutil.copy(made / name / LORA, folder)
        # what accelerate saves to resume the training
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "optimizer.bin").write_bytes(b"state")
    write_lora(tmp_path, stable_diffusion(), "to_q", seed=7)
    assert steps(tmp_path) == [
        ("checkpoint-500", 500, "lora", False),
        ("checkpoint-1000", 1000, "lora", False),
        (LORA, 1001, "lora", True),
    ]
    first, second, _ = checkpoints_in(tmp_path)
    assert first.digest != second.digest
    # the end holds the same bytes as the last checkpoint
    shutil.copy(made / "later" / LORA, tmp_path)
    assert [one.step for one in checkpoints_in(tmp_path)] == [500, 1000]
    assert unfinished_in(tmp_path) == []


def test_a_lora_is_loaded_at_a_scale(made, tmp_path):
    put(made, tmp_path, **{"checkpoint-500": "lora"})
    (one,) = checkpoints_in(tmp_path)
    assert one.scalable
    pipe = one.load(made / "base", scale=0.5, device="cpu")
    expected = load_pipeline(made / "base", device="cpu", lora=f"{made / 'lora'}:0.5")
    assert same(pipe.unet, expected.unet)
    assert {scale for module in pipe.unet.modules() for scale in getattr(module, "scaling", {}).values()} == {0.5}
    check_same_base(load_pipeline(made / "base", device="cpu"), pipe)


def test_a_lora_of_the_bundled_model(tmp_path):
    base = load_pipeline("bundled", device="cpu")
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "checkpoint-5", unet_lora_layers=layers(load_pipeline("bundled", device="cpu").unet, "to_q", seed=1)
    )
    (one,) = checkpoints_in(tmp_path)
    pipe = one.load("bundled", scale=0.5, device="cpu")
    check_same_base(base, pipe)
    assert pipe.get_active_adapters() == ["lora_0"]


def test_networks_of_diffusers_scripts(made, tmp_path):
    put(made, tmp_path, **{"checkpoint-10__unet": "unet", "checkpoint-20__unet": "unet"})
    put(made, tmp_path, **{"checkpoint-20__unet_ema": "averaged", "checkpoint-10__text_encoder": "text_encoder"})
    assert steps(tmp_path) == [
        ("checkpoint-10", 10, "network", False),
        ("checkpoint-20/unet_ema", 20, "network", False),
    ]
    first, second = checkpoints_in(tmp_path)
    assert not first.scalable
    pipe = first.load(made / "base", device="cpu")
    assert same(pipe.unet, trained(1).unet)
    assert same(pipe.text_encoder, trained(3).text_encoder)
    assert same(pipe.vae, stable_diffusion().vae)
    # averaged weights are what the trainer hands out
    assert same(second.load(made / "base", device="cpu").unet, trained(2).unet)
    with pytest.raises(UsageError, match=r"checkpoint-10 is no LoRA and has no scale; leave scale=0.5 out"):
        first.load(made / "base", scale=0.5)
    assert {file.name for file in first.files} == {"diffusion_pytorch_model.safetensors", "model.safetensors"}


def test_the_digest_is_that_of_weights_only(made, tmp_path):
    put(made, tmp_path, **{"checkpoint-10__unet": "unet", "checkpoint-20__unet": "unet"})
    (tmp_path / "checkpoint-20" / "optimizer.bin").write_bytes(b"state")
    first, second = checkpoints_in(tmp_path)
    assert first.digest == second.digest
    put(made, tmp_path, **{"checkpoint-10__text_encoder": "text_encoder"})
    assert checkpoints_in(tmp_path)[0].digest != second.digest


def test_kohya_lora(made, tmp_path):
    write_kohya(tmp_path / "dog-2-000001.safetensors", seed=1, ss_steps="40", ss_epoch="1")
    write_kohya(tmp_path / "dog-2-step00000060.safetensors", seed=2, ss_steps="60", ss_epoch="2")
    write_kohya(tmp_path / "dog-2-000002.safetensors", seed=3, ss_steps="80", ss_epoch="2")
    write_kohya(tmp_path / "dog-2.safetensors", seed=4, ss_steps="120", ss_epoch="3")
    (tmp_path / "dog-2-state").mkdir()
    assert steps(tmp_path) == [
        ("dog-2-000001.safetensors", 40, "lora", False),
        ("dog-2-step00000060.safetensors", 60, "lora", False),
        ("dog-2-000002.safetensors", 80, "lora", False),
        ("dog-2.safetensors", 120, "lora", True),
    ]
    one = checkpoints_in(tmp_path)[0]
    pipe = one.load(made / "base", device="cpu")
    assert not torch.equal(picture(pipe), picture(load_pipeline(made / "base", device="cpu")))
    assert torch.equal(picture(one.load(made / "base", scale=0, device="cpu")), picture(stable_diffusion()))


def picture(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle", num_inference_steps=2, generator=generator, output_type="latent").images


def test_kohya_without_metadata(made, tmp_path, caplog):
    write_kohya(tmp_path / "dog-000001.safetensors", seed=1)
    write_kohya(tmp_path / "dog-000002.safetensors", seed=2)
    write_kohya(tmp_path / "dog.safetensors", seed=3)
    # epochs take the place of steps
    assert [one.step for one in checkpoints_in(tmp_path)] == [1, 2, 3]
    state = tmp_path / "dog-000001-state" / "train_state.json"
    state.parent.mkdir()
    state.write_text(json.dumps({"current_epoch": 1, "current_step": 40}))
    assert [one.step for one in checkpoints_in(tmp_path)] == [40, 41]
    assert "left out dog-000002.safetensors" in caplog.text


def test_kohya_whole_models(made, tmp_path):
    put(made, tmp_path, **{"dog-000001.safetensors": "whole.safetensors", "dog-step00000500": "pipeline"})
    shutil.rmtree(tmp_path / "dog-step00000500" / "vae")
    assert unfinished_in(tmp_path) == [("dog-step00000500", "the folder vae is missing")]
    assert steps(tmp_path) == [("dog-000001.safetensors", 1, "pipeline", False)]
    pipe = checkpoints_in(tmp_path)[0].load(made / "base", device="cpu", revision=None)
    assert same(pipe.unet, trained(5).unet)
    check_same_base(stable_diffusion(), pipe)


def test_networks_in_single_files(made, tmp_path):
    put(made, tmp_path, **{"dog-000001.safetensors": "unet/diffusion_pytorch_model.safetensors"})
    assert steps(tmp_path) == [("dog-000001.safetensors", 1, "network", False)]
    assert same(checkpoints_in(tmp_path)[0].load(made / "base", device="cpu").unet, trained(1).unet)


def test_transformers_and_unconditional_models(tmp_path):
    for name, pipe in (("transformer", stable_diffusion_3()), ("unet", unconditional())):
        pipe.save_pretrained(tmp_path / f"base of {name}")
        getattr(pipe, name).save_pretrained(tmp_path / name / "checkpoint-7" / name)
        (one,) = checkpoints_in(tmp_path / name)
        assert (one.step, one.kind) == (7, "network")
        check_same_base(pipe, one.load(tmp_path / f"base of {name}", device="cpu"))


def test_simple_tuner(made, tmp_path):
    put(made, tmp_path, **{"checkpoint-100": "lora", "checkpoint-200": "lora", "checkpoint-200__ema": "later"})
    (tmp_path / "checkpoint-100" / "training_state.json").write_text("{}")
    put(made, tmp_path, **{"pipeline": "pipeline", "temporary-300__unet": "unet"})
    assert steps(tmp_path) == [
        ("checkpoint-100", 100, "lora", False),
        (f"checkpoint-200/ema/{LORA}", 200, "lora", False),
        ("pipeline", 201, "pipeline", True),
    ]
    assert unfinished_in(tmp_path) == [("temporary-300", "it is still being written")]
    assert same(checkpoints_in(tmp_path)[-1].load(made / "base", device="cpu").unet, trained(4).unet)


def test_runs_of_the_proving_ground(made, tmp_path):
    put(made, tmp_path, early="pipeline", final="pipeline", **{"step-60": "pipeline", "step-60__lora": "lora"})
    with (tmp_path / "recipe.json").open("w") as file:
        json.dump({"phases": [{"steps": 90}, {"steps": 10}], "kept": [30, 60]}, file)
    save_file(
        {"unet/down_blocks.0": torch.zeros(1), "optimizer/0/step": torch.zeros(1)}, tmp_path / "denoiser.safetensors"
    )
    (tmp_path / "step-90.unfinished").mkdir()
    assert steps(tmp_path) == [
        ("early", 30, "pipeline", False),
        ("step-60", 60, "lora", False),
        ("final", 100, "pipeline", True),
    ]
    assert unfinished_in(tmp_path) == [("step-90.unfinished", "it is still being written")]


def test_named_with_a_number(made, tmp_path):
    put(made, tmp_path, **{"500": "lora", "dog_000001000.safetensors": f"later/{LORA}"})
    assert [(one.name, one.step) for one in checkpoints_in(tmp_path)] == [
        ("500", 500),
        ("dog_000001000.safetensors", 1000),
    ]


def test_a_step_with_several_checkpoints(made, tmp_path):
    write_kohya(tmp_path / "dog-000002.safetensors", seed=1, ss_steps="500")
    write_kohya(tmp_path / "dog-step00000500.safetensors", seed=2, ss_steps="500")
    write_kohya(tmp_path / "dog.safetensors", seed=3, ss_steps="500")
    assert steps(tmp_path) == [("dog-step00000500.safetensors", 500, "lora", False)]


def test_peft_adapters_and_the_folder_of_one_checkpoint(made, tmp_path):
    folder = tmp_path / "checkpoint-300"
    folder.mkdir()
    renamed = {"unet.": "base_model.model.", "lora.down": "lora_A", "lora.up": "lora_B"}
    tensors = load_file(made / "lora" / LORA)
    for old, new in renamed.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    assert unfinished_in(tmp_path) == [("checkpoint-300", "adapter_config.json is missing or incomplete")]
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "target_modules": ["to_q"]}))
    assert steps(tmp_path) == [("checkpoint-300", 300, "lora", False)]
    # given by itself
    assert steps(folder) == [("adapter_model.safetensors", 300, "lora", True)]
    digest = checkpoints_in(tmp_path)[0].digest
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8, "target_modules": ["to_q"]}))
    assert checkpoints_in(tmp_path)[0].digest != digest


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1])
def test_a_file_that_is_cut_off(made, tmp_path, length):
    put(made, tmp_path, **{"checkpoint-500": "lora", "checkpoint-1000": "later"})
    file = tmp_path / "checkpoint-1000" / LORA
    file.write_bytes(file.read_bytes()[:length])
    assert [one.step for one in checkpoints_in(tmp_path)] == [500]
    ((name, reason),) = unfinished_in(tmp_path)
    assert name == "checkpoint-1000"
    assert reason.startswith(LORA)


@given(content=st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: (30).to_bytes(8, "little") + rest))
@example(content=(2).to_bytes(8, "little") + b"[]")
@example(content=(21).to_bytes(8, "little") + b'{"__metadata__": "x"}')
@example(content=(30).to_bytes(8, "little") + b'{"a": {"data_offsets": [0,[]]}}')
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_refused_or_empty(tmp_path, content):
    file = tmp_path / "any.safetensors"
    file.write_bytes(content)
    # nothing else is ever raised
    with suppress(UnfinishedError):
        assert header_of(file).names == frozenset()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda unet: (unet / "config.json").unlink(), "config.json is missing or incomplete"),
        (lambda unet: (unet / "config.json").write_text('{"_class'), "config.json is missing or incomplete"),
        (lambda unet: (unet / "diffusion_pytorch_model.safetensors").unlink(), "unet holds no weights yet"),
        (lambda unet: (unet / "x.tmp").write_text(""), "x.tmp is still being written"),
        (
            lambda unet: (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}})
            ),
            "diffusion_pytorch_model-00002-of-00002.safetensors cannot be read (No such file or directory)",
        ),
        (
            lambda unet: (unet / "diffusion_pytorch_model.safetensors.index.json").write_text("{}"),
            "diffusion_pytorch_model.safetensors.index.json is incomplete",
        ),
        (lambda unet: (unet.parent / "vae").mkdir(), "model_index.json is missing"),
        (lambda unet: shutil.rmtree(unet), "it holds no weights yet, at most what is needed to resume the training"),
    ],
)
def test_a_network_that_is_not_finished(made, tmp_path, change, reason):
    put(made, tmp_path, **{"checkpoint-10__unet": "unet"})
    change(tmp_path / "checkpoint-10" / "unet")
    assert unfinished_in(tmp_path) == [("checkpoint-10", reason)]
    with pytest.raises(UsageError, match=r"no checkpoints in .*; checkpoint-10 is not finished"):
        checkpoints_in(tmp_path)


def test_files_of_pytorch(made, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "dog-000001.ckpt")
    whole = (tmp_path / "dog-000001.ckpt").read_bytes()
    (tmp_path / "dog-000002.ckpt").write_bytes(whole[:-30])
    assert steps(tmp_path) == [("dog-000001.ckpt", 1, "pipeline", False)]
    assert unfinished_in(tmp_path) == [("dog-000002.ckpt", "dog-000002.ckpt ends too early")]


def test_what_is_refused(made, tmp_path):
    with pytest.raises(UsageError, match=r"no folder .*; give the folder into which the trainer writes"):
        checkpoints_in(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no checkpoints in .* give a folder with, for instance, checkpoint-500"):
        checkpoints_in(tmp_path)
    save_file({"emb_params": torch.zeros(2, 4)}, tmp_path / "word-000001.safetensors")
    with pytest.raises(UsageError, match="no checkpoints in"):
        checkpoints_in(tmp_path)
    put(
        made, tmp_path, **{"dog-000001.safetensors": "kohya.safetensors", "cat-000001.safetensors": "kohya.safetensors"}
    )
    with pytest.raises(UsageError, match="several trainings: cat, dog; give one folder each"):
        checkpoints_in(tmp_path)


def test_steps_that_cannot_be_told(made, tmp_path):
    put(made, tmp_path, **{"dog.safetensors": "kohya.safetensors", "cat.safetensors": "kohya.safetensors"})
    with pytest.raises(UsageError, match=r"cannot tell the steps of cat\.safetensors, dog\.safetensors"):
        checkpoints_in(tmp_path)
    (tmp_path / "cat.safetensors").unlink()
    assert steps(tmp_path) == [("dog.safetensors", 1, "lora", True)]


def test_a_checkpoint_that_is_gone(made, tmp_path):
    put(made, tmp_path, **{"checkpoint-10__unet": "unet", "checkpoint-20": "lora"})
    first, second = checkpoints_in(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-10")
    shutil.rmtree(tmp_path / "checkpoint-20")
    with pytest.raises(UsageError, match="has changed or is gone"):
        first.load(made / "base", device="cpu")
    for one in (first, second):
        with pytest.raises(UsageError, match=r"is gone|cannot read"):
            _ = one.digest
    with pytest.raises(UsageError, match="no LoRA"):
        second.load(made / "base", device="cpu")


def other_weights():
    pipe = stable_diffusion()
    torch.manual_seed(11)
    pipe.register_modules(unet=type(pipe.unet).from_config(pipe.unet.config))
    return pipe


def other_layout():
    pipe = stable_diffusion()
    pipe.register_modules(unet=type(pipe.unet).from_config({**pipe.unet.config, "layers_per_block": 2}))
    return pipe


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (other_weights, r"another base: its weights have a mean cosine similarity of -?0\.0\d to this one's"),
        (other_layout, "another layout than the base"),
        (stable_diffusion_xl, "family is"),
        (stable_diffusion_3, "prediction type is"),
        (unconditional, "family is"),
    ],
)
def test_checkpoints_of_another_base(other, message):
    check_same_base(stable_diffusion(), trained(1))
    with pytest.raises(UsageError, match=message):
        check_same_base(stable_diffusion(), other())


@pytest.mark.parametrize(("version", "warned"), [("sd_v1", False), ("sdxl_base_v1-0", True), ("sd_v2_v", True)])
def test_the_base_that_a_lora_names(made, tmp_path, caplog, version, warned):
    write_kohya(tmp_path / "dog-000001.safetensors", seed=1, ss_steps="9", ss_base_model_version=version)
    with caplog.at_level(logging.WARNING):
        checkpoints_in(tmp_path)[0].load(made / "base", device="cpu")
    assert ("says that it was trained on" in caplog.text) == warned


def test_watching_follows_a_training(made, tmp_path):
    folder, done = tmp_path / "run", threading.Event()

    def train():
        for step, name in ((500, "lora"), (1000, "later")):
            place = folder / f"checkpoint-{step}"
            place.mkdir(parents=True)
            content = (made / name / LORA).read_bytes()
            (place / LORA).write_bytes(content[:300])
            done.wait(0.3)
            (place / LORA).write_bytes(content)
            done.wait(0.6)
        write_lora(folder, stable_diffusion(), "to_q", seed=7)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        lists = list(watching(folder, 0.05, settled=0.2))
    finally:
        done.set()
        trainer.join()
    assert [[one.step for one in found] for found in lists] == [[500], [500, 1000], [500, 1000, 1001]]


def test_watching_ends_when_it_is_stopped(made, tmp_path):
    put(made, tmp_path, **{"checkpoint-500": "lora"})
    write_lora(tmp_path, stable_diffusion(), "to_q", seed=7)
    # the end of an earlier run does not end it
    past = time.time() - 3600
    os.utime(tmp_path / LORA, (past, past))
    looks = iter([False, False, False, True])
    lists = list(watching(tmp_path, 0, lambda: next(looks), settled=0))
    assert [[one.step for one in found] for found in lists] == [[500, 501]]
