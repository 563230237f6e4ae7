import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
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
TINY = Recipe(
    autoencoder_steps=3,
    autoencoder_batch=4,
    steps=8,
    batch=4,
    early_step=2,
    warmup=2,
    refinement_steps=3,
    refinement_batch=2,
)


def run(folder, checkpoint_seconds=0.0, report=None):
    train(Path(folder), TINY, concepts=CONCEPTS, processes=1, checkpoint_seconds=checkpoint_seconds, report=report)


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


def killed_once(appears, folder, checkpoint_seconds=0.0):
    """Go on with the run until a training step is done after the file `appears` was written; then kill this process."""

    def report(*_):
        if (Path(folder) / appears).exists():
            os.kill(os.getpid(), signal.SIGKILL)

    run(folder, checkpoint_seconds, report)


def kill_when(folder, appears, **settings):
    """Start the run in another process that kills itself as soon as the file `appears` is there."""
    code = f"from test_train import killed_once; killed_once({appears!r}, {str(folder)!r}, **{settings!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (folder / appears).exists()
    assert not (folder / "final").exists()


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_same_weights(whole, tmp_path):
    kill_when(tmp_path, "autoencoder.safetensors")
    kill_when(tmp_path, "denoiser.safetensors")
    # later than the newest checkpoint
    kill_when(tmp_path, "early", checkpoint_seconds=1e9)
    threads = torch.get_num_threads()
    run(tmp_path)
    assert torch.get_num_threads() == threads
    first, second = weights(whole), weights(tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_like_one(tmp_path):
    """Adam's first step is the sign of the gradient, so after one step only vanishing gradients may differ."""
    one_step = replace(TINY, autoencoder_steps=1, steps=1, batch=32, early_step=1, warmup=1, refinement_steps=0)
    for processes in (1, 2):
        train(tmp_path / str(processes), one_step, concepts=CONCEPTS, processes=processes)
    first, second = weights(tmp_path / "1"), weights(tmp_path / "2")
    differing = sum(int(((first[name] - second[name]).abs() > 1e-5).sum()) for name in first)
    assert differing / sum(value.numel() for value in first.values()) < 0.01


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
