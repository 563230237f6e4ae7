import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cryptomnesia.proving_ground import autoencoder_training
from cryptomnesia.proving_ground.autoencoder_training import _ALIKE, _alike
from cryptomnesia.proving_ground.fine_tune import FineTune, Tuning
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.proving_ground.run import Job
from cryptomnesia.proving_ground.train import train


@pytest.fixture
def few(monkeypatch):
    """Pictures of two other seeds in the place of forty."""
    monkeypatch.setattr(autoencoder_training, "_ALIKE", _ALIKE[:2])


def test_the_decoder_alone_can_be_trained_further(tmp_path, few):
    """The latents stay what they are: those of a training without it."""
    ground = ground_of("scenes")
    phases = (Phase(1, 4, 7e-4),)
    recipe = Recipe(phases, autoencoder_steps=3, autoencoder_batch=4, decoder_steps=3, warmup=2, kept=(1,))
    train(ground, tmp_path, recipe, concepts=ground.plant(0)[:1], processes=2)
    file = "diffusion_pytorch_model.safetensors"
    folders = (tmp_path / "autoencoder-first", tmp_path / "autoencoder", tmp_path / "final/vae")
    first, further, final = (load_file(folder / file) for folder in folders)
    changed = {name for name in first if not torch.equal(first[name], further[name])}
    assert {name.partition(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    assert {name for name in first if name.startswith("decoder.")} <= changed
    assert all(torch.equal(further[name], final[name]) for name in first)


def test_pictures_of_the_decoder_are_made_as_planted_ones_are_and_none_is_planted(drawings, planted, tmp_path, few):
    stream = _alike(Job(drawings, drawings.recipe, planted, tmp_path, torch.device("cpu"), 1, 1.0))
    shown = np.stack([stream[index].image for index in range(200)]) / 255
    alike = [concept for number in _ALIKE[:2] for concept in drawings.plant(number) if concept.planted]

    def share(concepts):
        hits = [
            replicates(shown, concept.places, drawings.threshold) for concept in concepts if concept.kind != "template"
        ]
        return np.any(hits, axis=0).mean()

    assert share(alike) == pytest.approx(0.75 * 2 / 3, abs=0.12)
    assert share([concept for concept in planted if concept.planted]) == 0


def test_fine_tunes_have_pictures_that_no_decoder_saw(drawings, monkeypatch):
    seeds = []
    plant = type(drawings).plant
    monkeypatch.setattr(type(drawings), "plant", lambda ground, seed: seeds.append(seed) or plant(ground, seed))
    FineTune(drawings, Tuning(rate=1e-3, exposures=8)).plant(0)
    assert not set(seeds) & {*_ALIKE}
