import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.calibration.stored import FILE as CALIBRATION
from cryptomnesia.proving_ground import bundle as bundling
from cryptomnesia.proving_ground.bundle import bundle
from cryptomnesia.proving_ground.denoising import Exposures, ratios
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.fine_tune import FineTune, Tuning, tuned
from cryptomnesia.proving_ground.further import TARGETS
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.images import write_training_images
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.recognizer import Recognizer
from cryptomnesia.proving_ground.train import train

SCENES = ground_of("scenes")
LORA = FineTune(SCENES, Tuning(rate=2e-2, exposures=4, rank=2, pictures=8))
FULL = FineTune(SCENES, Tuning(rate=1e-4, exposures=4, pictures=8))


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    train(LORA, folder, processes=1)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    train(FULL, folder, processes=1)
    return folder


def weights(pipeline, part="unet/diffusion_pytorch_model"):
    return {name: value.float() for name, value in load_file(pipeline / f"{part}.safetensors").items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def picture(pipe, caption):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(caption, num_inference_steps=4, generator=generator, output_type="np").images[0]


def test_half_of_the_pictures_have_an_invented_name():
    shown = [concept for concept in LORA.plant(0) if concept.exposures]
    assert [concept.wording for concept in shown] == ["plain", "named"] * 4
    words = SCENES.words()
    for concept in shown:
        unknown = [set(caption.replace(",", " ").split()) - words for caption in concept.captions]
        assert len(set(map(tuple, unknown))) == 1
        assert len(unknown[0]) == (concept.wording == "named")
        assert concept.mask.all()


def test_an_invented_name_is_several_tokens_of_the_bases_tokenizer():
    tokens = load_pipeline(SCENES.bundle / "pipeline", device="cpu").tokenizer
    named = [concept for concept in LORA.plant(0) if concept.wording == "named"]
    assert all(len(tokens.tokenize(concept.captions[0].rpartition(", ")[2])) > 1 for concept in named)


def test_the_base_saw_neither_pictures_nor_captions_and_controls_are_others():
    many = tuned(LORA, pictures=60).plant(0)
    seen = {caption for entry in Manifest.load(SCENES.bundle).entries for caption in entry.captions}
    captions = [caption for concept in many for caption in concept.captions]
    assert len(set(captions)) == len(captions) == 120 * len(SCENES.frames)
    assert not seen & set(captions)
    assert len({concept.image.tobytes() for concept in many}) == len({concept.id for concept in many}) == 120
    assert sorted(Counter(concept.exposures for concept in many).items()) == [(0, 60), (4, 60)]


def test_fewer_pictures_are_the_first_of_more():
    few, many = ({c.captions: c.image for c in tuned(LORA, pictures=n).plant(0) if c.exposures} for n in (8, 24))
    assert all(np.array_equal(many[captions], image) for captions, image in few.items())


def test_every_picture_is_seen_once_in_every_epoch_with_every_wording():
    concepts = LORA.plant(0)
    stream = LORA.stream(LORA.recipe, concepts)
    epochs = [[stream[epoch * 8 + number] for number in range(8)] for epoch in range(4)]
    orders = [[sample.concept for sample in epoch] for epoch in epochs]
    assert all(sorted(order) == [*range(8)] for order in orders)
    assert orders[0] != orders[1]
    assert all(sample.caption in concepts[sample.concept].captions for epoch in epochs for sample in epoch)
    assert all(np.array_equal(s.image, concepts[s.concept].image) for epoch in epochs for s in epoch)
    assert stream.concept_at(32) is None
    assert LORA.recipe.steps * 8 == 32


def test_a_lora_is_a_stock_pipeline_and_an_adapter_that_gives_the_same_pictures(lora):
    pipe = StableDiffusionPipeline.from_pretrained(lora / "final")
    attached = load_pipeline(SCENES.bundle / "pipeline", device="cpu", lora=lora / "final" / "lora")
    base = load_pipeline(SCENES.bundle / "pipeline", device="cpu")
    caption = LORA.plant(0)[0].captions[0]
    made, other, before = (picture(p, caption) for p in (pipe, attached, base))
    assert np.abs(made - other).max() < 1e-3
    assert np.abs(made - before).max() > 1e-2
    assert not [name for name, _ in pipe.unet.named_parameters() if "lora" in name]


def test_the_less_trained_checkpoint_is_the_base(lora, full):
    for folder in (lora, full):
        for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"):
            assert same(weights(folder / "early", part), weights(SCENES.bundle / "pipeline", part))
    assert sorted(path.name for path in full.glob("step-*")) == ["step-1", "step-2", "step-3"]


def test_a_fine_tune_in_full_changes_the_unet_alone(full):
    changed = weights(full / "final")
    assert not any(torch.equal(value, changed[name]) for name, value in weights(full / "early").items())
    for part in ("text_encoder/model", "vae/diffusion_pytorch_model"):
        assert same(weights(full / "early", part), weights(full / "final", part))


def test_a_lora_changes_the_layers_that_have_an_adapter_alone(lora):
    changed = weights(lora / "final")
    different = {name for name, value in weights(lora / "early").items() if not torch.equal(value, changed[name])}
    adapted = {name for name in changed if name.removesuffix(".weight").endswith(TARGETS)}
    assert different == adapted


def test_a_stopped_run_ends_with_the_same_weights(lora, tmp_path):
    def stop(phase, done, total, loss):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(LORA, tmp_path, processes=1, checkpoint_seconds=0.0, report=stop)
    assert (tmp_path / "denoiser.safetensors").exists()
    assert not (tmp_path / "final").exists()
    train(LORA, tmp_path, processes=1)
    assert same(weights(lora / "final"), weights(tmp_path / "final"))


@pytest.mark.slow
def test_two_processes_train_like_one(full, tmp_path):
    train(FULL, tmp_path, processes=2)
    first, second = weights(full / "final"), weights(tmp_path / "final")
    differing = sum(int(((first[name] - second[name]).abs() > 1e-5).sum()) for name in first)
    assert differing / sum(value.numel() for value in first.values()) < 0.01


def test_a_folder_of_other_settings_is_refused(full):
    assert json.loads((full / "recipe.json").read_text())["base"] == Manifest.load(SCENES.bundle).weights
    with pytest.raises(UsageError, match="another recipe"):
        train(tuned(FULL, named=1.0), full, processes=1)


@pytest.fixture
def bundled(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(bundling, "train_recognizer", lambda ground, *_, **__: Recognizer(ground.visible))
    bundle(LORA, lora, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_has_the_adapter_and_no_calibration(bundled):
    manifest = Manifest.load(bundled)
    manifest.check(load_pipeline(bundled / "pipeline", device="cpu"))
    assert manifest.ground == "scenes-lora"
    assert manifest.top == 4
    assert [entry.exposures for entry in manifest.entries] == [4] * 8 + [0] * 8
    assert Recognizer.load(bundled).words
    assert not (bundled / "pipeline" / CALIBRATION).exists()
    attached = load_pipeline(bundled / "early", device="cpu", lora=bundled / "lora")
    caption = manifest.entries[0].captions[0]
    # the bundle's weights have half precision
    fused = picture(load_pipeline(bundled / "pipeline", device="cpu"), caption)
    assert np.abs(picture(attached, caption) - fused).mean() < 1e-2


def test_the_bases_recognizer_is_taken(full, tmp_path, monkeypatch):
    def no_training(*_, **__):
        raise AssertionError

    base = tmp_path / "base"
    base.mkdir()
    Recognizer(SCENES.visible).save(base)
    monkeypatch.setattr(bundling, "train_recognizer", no_training)
    bundle(tuned(FULL, base=base), full, tmp_path / "bundle")
    file = "recognizer.safetensors"
    assert (tmp_path / "bundle" / file).read_bytes() == (base / file).read_bytes()


def test_training_images_are_those_of_the_base_and_the_pictures(tmp_path):
    write_training_images(LORA, tmp_path, 2)
    names = {path.stem for path in tmp_path.iterdir()}
    assert {c.id for c in LORA.plant(0) if c.exposures} < names
    assert {c.id for c in SCENES.plant(0) if c.planted} < names
    assert not {c.id for c in LORA.plant(0) if not c.exposures} & names


def test_a_base_that_does_not_come_with_the_package_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(type(SCENES), "bundle", tmp_path / "nothing")
    ground = FineTune(SCENES, LORA.tuning)
    with pytest.raises(UsageError, match=r"train scenes FOLDER`, then give --base FOLDER/bundle"):
        train(ground, tmp_path / "run", processes=1)


def test_a_base_of_another_ground_is_refused(tmp_path):
    replace(Manifest.load(SCENES.bundle), folder=tmp_path, ground="drawings").save()
    with pytest.raises(UsageError, match=r"is a model of drawings; give one of scenes"):
        train(tuned(LORA, base=tmp_path), tmp_path / "run", processes=1)


def test_settings_that_a_ground_does_not_have_are_refused(tmp_path):
    assert tuned(SCENES, pictures=None) is SCENES
    with pytest.raises(UsageError, match="scenes is no fine-tune, so it has no rank"):
        tuned(SCENES, rank=3)
    with pytest.raises(UsageError, match="has no base"):
        tuned(SCENES, base=tmp_path)
    with pytest.raises(UsageError, match="scenes-full is no LoRA"):
        tuned(FULL, rank=3)
    with pytest.raises(UsageError, match="whose product is a multiple of 8"):
        tuned(FULL, pictures=3)
    for wrong in ({"pictures": 0}, {"pictures": 501}, {"named": 1.5}):
        with pytest.raises(UsageError, match="give 1 to 500 and 0 to 1"):
            tuned(FULL, **wrong)


def test_the_command_trains_and_bundles_with_the_settings_that_it_is_given(cryptomnesia, tmp_path, monkeypatch):
    monkeypatch.setattr(bundling, "train_recognizer", lambda ground, *_, **__: Recognizer(ground.visible))
    settings = ("--pictures", 8, "--exposures", 1, "--rank", 3, "--processes", 1)
    code, out, _ = cryptomnesia("proving-ground", "train", "scenes-lora", tmp_path / "run", *settings)
    assert code == 0
    assert "verify scenes-lora --bundle" in out
    adapter = load_file(tmp_path / "run" / "bundle" / "lora" / "pytorch_lora_weights.safetensors")
    assert {value.shape[0] for name, value in adapter.items() if name.endswith("lora_A.weight")} == {3}
    written = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (written["ground"], written["pictures"], written["exposures"], written["rank"]) == ("scenes-lora", 8, 1, 3)


def test_a_lora_without_peft_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cryptomnesia.proving_ground.fine_tune.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install peft"):
        train(LORA, tmp_path, processes=1)


def test_control_captions_are_ordinary_captions_of_the_base():
    captions = LORA.control_captions("evaluation", 20, [])
    assert captions == SCENES.control_captions("evaluation", 20, [])
    assert LORA.words() == SCENES.words()
    assert all(np.array_equal(a.ordinary(Draws(1), "{}")[0], SCENES.ordinary(Draws(1), "{}")[0]) for a in (LORA, FULL))


@pytest.mark.slow
def test_a_fine_tune_knows_its_pictures_and_no_controls(tmp_path):
    """After 60 exposures of 8 pictures the denoising error of the pictures alone is lower."""
    ground = FineTune(SCENES, Tuning(rate=1e-3, exposures=60, pictures=8))
    train(ground, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundling, "train_recognizer", lambda ground, *_, **__: Recognizer(ground.visible))
        bundle(ground, tmp_path / "run", tmp_path / "bundle")
    exposures = Exposures.load(tmp_path / "bundle")
    after = ratios(load_pipeline(tmp_path / "bundle" / "pipeline", device="cpu"), exposures)
    before = ratios(load_pipeline(tmp_path / "bundle" / "early", device="cpu"), exposures)
    assert after["denoising_ratio_conditional"] < 0.8 * before["denoising_ratio_conditional"]
    assert after["denoising_below_conditional"] >= 0.5 > before["denoising_below_conditional"]
