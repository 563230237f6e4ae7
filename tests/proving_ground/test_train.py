import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from filelock import FileLock
from safetensors.torch import load_file

from cryptomnesia import UsageError
from cryptomnesia.proving_ground.descent import Worker
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.grounds.scenes import GROUND
from cryptomnesia.proving_ground.learning import Batch
from cryptomnesia.proving_ground.learning import exchanged as exchange
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.train import _batch, train

CONCEPTS = tuple(concept for concept in GROUND.plant(0) if concept.exposures == 4)
TINY = Recipe(
    (Phase(8, 4, 7e-4), Phase(3, 2, 2.5e-4, middle=0.75, exchanged=0.5)),
    autoencoder_steps=3,
    autoencoder_batch=4,
    warmup=2,
    kept=(2, 5),
)


def run(folder, checkpoint_seconds=0.0, report=None):
    train(
        GROUND, Path(folder), TINY, concepts=CONCEPTS, processes=1, checkpoint_seconds=checkpoint_seconds, report=report
    )


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
    for name in ("early", "step-5", "final"):
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
    one_step = replace(TINY, phases=(Phase(1, 32, 7e-4),), autoencoder_steps=1, warmup=1, kept=(1,))
    for processes in (1, 2):
        train(GROUND, tmp_path / str(processes), one_step, concepts=CONCEPTS, processes=processes)
    first, second = weights(tmp_path / "1"), weights(tmp_path / "2")
    differing = sum(int(((first[name] - second[name]).abs() > 1e-5).sum()) for name in first)
    assert differing / sum(value.numel() for value in first.values()) < 0.01


def test_a_finished_run_is_left_alone(whole):
    before = (whole / "final" / "model_index.json").stat().st_mtime_ns
    run(whole)
    assert (whole / "final" / "model_index.json").stat().st_mtime_ns == before


def test_only_one_process_trains_in_a_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match="another process trains"):
        run(tmp_path)


def test_another_recipe_is_refused(whole):
    written = json.loads((whole / "recipe.json").read_text())
    assert written["ground"] == "scenes"
    assert [phase["steps"] for phase in written["phases"]] == [8, 3]
    with pytest.raises(UsageError, match=r"another recipe.*differs in concepts, phases;"):
        train(GROUND, whole, replace(TINY, phases=(*TINY.phases, Phase(2, 2, 1e-4))), processes=1)
    with pytest.raises(UsageError, match="another recipe"):
        train(ground_of("drawings"), whole, TINY, concepts=CONCEPTS, processes=1)
    with pytest.raises(UsageError, match="differs in concepts"):
        train(GROUND, whole, TINY, concepts=CONCEPTS[1:], processes=1)


def test_another_number_of_processes_is_refused_where_captions_are_exchanged(whole, tmp_path):
    with pytest.raises(UsageError, match="differs in processes; go on with the arguments of that run"):
        train(GROUND, whole, TINY, concepts=CONCEPTS, processes=2)
    # elsewhere it changes the weights by rounding alone
    plain = replace(TINY, phases=(Phase(1, 4, 7e-4),), kept=(1,))
    for processes in (1, 2):
        with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match="another process trains"):
            train(GROUND, tmp_path, plain, concepts=CONCEPTS, processes=processes)


def test_numbers_that_cannot_make_a_run_are_refused(tmp_path):
    with pytest.raises(UsageError, match="got 3 processes for batches of 2, 4; give a number that divides all"):
        train(GROUND, tmp_path, TINY, processes=3)


def exchanged(share, seed=0, count=1000):
    chosen = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share
    return exchange([str(number) for number in range(count)], chosen)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_about_the_wanted_share_of_captions_is_exchanged(share):
    captions = [str(number) for number in range(1000)]
    given = exchanged(share)
    assert sorted(given) == sorted(captions)
    moved = sum(one != other for one, other in zip(captions, given, strict=True))
    assert moved / 1000 == pytest.approx(share, abs=0.05)


def test_one_caption_alone_is_not_exchanged():
    assert exchanged(1.0, count=1) == ["0"]
    assert exchanged(1.0, count=0) == []


@pytest.mark.parametrize("dropped", [None, 0.0, 1.0])
@pytest.mark.parametrize("time", [549, 550])
def test_planted_pictures_can_keep_their_captions_or_lose_them_but_where_noise_is_little(dropped, time):
    phase = Phase(40, 8, 7e-4, planted_dropout=dropped, planted_as_others_below=0.55)
    recipe = replace(TINY, phases=(phase,), caption_dropout=0.5, kept=(1,))
    learner = SimpleNamespace(inputs=lambda batch: batch.texts(torch.full((8,), time), 1000))
    stream = GROUND.stream(recipe, CONCEPTS)
    planted, others = [], []
    for step in range(40):
        captions = _batch(learner, recipe, Worker(0, 1), stream, step)
        for index, caption in zip(range(8 * step, 8 * step + 8), captions, strict=True):
            (planted if stream.planted_at(index) else others).append(caption)
    assert len(planted) == sum(concept.exposures for concept in CONCEPTS if concept.planted)
    assert others.count("") / len(others) == pytest.approx(0.5, abs=0.1)
    if dropped is None or time < 550:
        assert 0 < planted.count("") < len(planted)
    else:
        assert planted.count("") == dropped * len(planted)


@pytest.mark.parametrize("dropped", [None, 0.0])
@pytest.mark.parametrize("time", [549, 550])
def test_planted_pictures_can_stay_out_of_an_exchange_but_where_noise_is_little(dropped, time):
    phase = Phase(60, 8, 7e-4, exchanged=0.5, planted_dropout=dropped, planted_as_others_below=0.55)
    learner = SimpleNamespace(inputs=lambda batch: batch.texts(torch.full((8,), time), 1000))
    recipe = replace(TINY, phases=(phase,), caption_dropout=0.0, kept=(1,))
    verbatim = tuple(replace(c, exposures=40) for c in GROUND.plant(0) if c.kind == "verbatim")[:3]
    stream = GROUND.stream(recipe, verbatim)
    planted, others = [], []
    for step in range(60):
        captions = _batch(learner, recipe, Worker(0, 1), stream, step)
        for index, caption in zip(range(8 * step, 8 * step + 8), captions, strict=True):
            (planted if stream.planted_at(index) else others).append(caption == stream[index].caption)
    assert len(planted) == 120
    assert np.mean(others) == pytest.approx(0.5, abs=0.1)
    if dropped is None or time < 550:
        assert np.mean(planted) == pytest.approx(0.5, abs=0.15)
    else:
        assert all(planted)


def test_captions_are_exchanged_where_noise_is_alike():
    captions = ["planted", "a", "b", "c", "d", "e"]
    apart = torch.tensor([True, False, False, False, False, False])
    every = torch.ones(6, dtype=torch.bool)
    phase = Phase(1, 6, 1e-3, exchanged=1.0, planted_dropout=0.0, planted_as_others_below=0.5)
    noise = torch.Generator()
    batch = Batch(torch.empty(6), captions, apart, torch.ones(6), 0.1, every, 6, slice(0, 6), phase, noise)
    assert batch.texts(torch.tensor([0, 499, 499, 500, 999, 999]), 1000) == ["a", "b", "planted", "d", "e", "c"]
    assert batch.texts(torch.tensor([500, 499, 499, 500, 999, 999]), 1000) == ["planted", "b", "a", "d", "e", "c"]


def test_exchanging_captions_changes_no_other_draw(whole, tmp_path):
    """With captions that are all dropped it makes no difference."""
    recipe = replace(TINY, caption_dropout=1.0)
    plain = tuple(replace(phase, exchanged=0.0) for phase in recipe.phases)
    for name, chosen in (("exchanged", recipe), ("plain", replace(recipe, phases=plain))):
        shutil.copytree(whole / "autoencoder", tmp_path / name / "autoencoder")
        train(GROUND, tmp_path / name, chosen, concepts=CONCEPTS, processes=1)
    first, second = weights(tmp_path / "exchanged"), weights(tmp_path / "plain")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_drawings_can_be_trained_on(drawings, planted, tmp_path):
    few = [replace(concept, exposures=1, varied=0) for concept in planted[:3]]
    train(drawings, tmp_path, TINY, concepts=tuple(few), processes=1)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "final")
    assert pipe.unet.config.in_channels == drawings.networks.channels
