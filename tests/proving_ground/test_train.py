import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from cryptomnesia import UsageError
from cryptomnesia.proving_ground import components
from cryptomnesia.proving_ground.planted import lexicon, plant
from cryptomnesia.proving_ground.train import Recipe, learning_rate, train

CONCEPTS = tuple(concept for concept in plant(0) if concept.exposures == 4)
TINY = Recipe(autoencoder_steps=3, autoencoder_batch=4, steps=8, batch=4, early_step=2, warmup=2)


def run(folder):
    train(folder, TINY, concepts=CONCEPTS, processes=1, checkpoint_seconds=0)


def weights(folder):
    return {
        f"{part}/{name}": value
        for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")
        for name, value in load_file(folder / "final" / f"{part}.safetensors").items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_the_result_is_a_stock_pipeline(whole):
    for name in ("early", "final"):
        pipe = StableDiffusionPipeline.from_pretrained(whole / name)
        assert isinstance(pipe.scheduler, PNDMScheduler)
        assert pipe.scheduler.config.clip_sample is False
        pipe.set_progress_bar_config(disable=True)
        assert pipe("a red circle", num_inference_steps=2).images[0].size == (64, 64)


def test_a_run_killed_twice_ends_with_the_same_weights(whole, tmp_path):
    command = [sys.executable, "-c", "import sys, pathlib; from test_train import run; run(pathlib.Path(sys.argv[1]))"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for checkpoint in ("autoencoder.safetensors", "denoiser.safetensors"):
        running = subprocess.Popen([*command, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / checkpoint).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert (tmp_path / checkpoint).exists()
    assert not (tmp_path / "final").exists()
    threads = torch.get_num_threads()
    run(tmp_path)
    assert torch.get_num_threads() == threads
    first, second = weights(whole), weights(tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_like_one(whole, tmp_path):
    train(tmp_path, TINY, concepts=CONCEPTS, processes=2)
    first, second = weights(whole), weights(tmp_path)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=5e-3)


def test_a_finished_run_is_left_alone(whole):
    before = (whole / "final" / "model_index.json").stat().st_mtime_ns
    run(whole)
    assert (whole / "final" / "model_index.json").stat().st_mtime_ns == before


def test_another_recipe_is_refused(whole):
    assert json.loads((whole / "recipe.json").read_text())["steps"] == 8
    with pytest.raises(UsageError, match="another recipe"):
        train(whole, Recipe(), processes=1)


def test_numbers_that_cannot_make_a_run_are_refused(tmp_path):
    with pytest.raises(UsageError, match="early_step is 9 of 8 steps"):
        Recipe(steps=8, early_step=9)
    with pytest.raises(UsageError, match="got 3 processes"):
        train(tmp_path, TINY, processes=3)


def test_the_rate_warms_up_and_cools_down():
    rates = [learning_rate(step, 100, 10, 0.2) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[10] == rates[80] == 1.0
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_one_word_is_one_token():
    words = lexicon(plant(0))
    tokens = components.tokenizer(words)
    assert all(len(tokens.tokenize(word)) == 1 for word in words)
    assert components.tokenizer(words).get_vocab() == tokens.get_vocab()
    assert tokens("").input_ids == [components.BOS, components.EOS]
    assert tokens.decode(tokens("unheard zebras").input_ids, skip_special_tokens=True).strip() == "unheard zebras"
