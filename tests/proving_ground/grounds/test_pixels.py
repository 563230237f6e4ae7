import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline
from PIL import Image

from cryptomnesia import load_pipeline
from cryptomnesia.calibration.stored import resolved
from cryptomnesia.detectors import detector, free_detectors
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import bundle as bundling
from cryptomnesia.proving_ground import verify as verifying
from cryptomnesia.proving_ground.bundle import bundle
from cryptomnesia.proving_ground.denoising import Exposures
from cryptomnesia.proving_ground.diffusion import PixelDiffusion
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.grounds.pixels import CONCEPTS, GROUND, Pixels
from cryptomnesia.proving_ground.images import write_training_images
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.replication import planted_distance
from cryptomnesia.proving_ground.show import grid
from cryptomnesia.proving_ground.verify import verify
from tiny_runs import TINY, run, same_weights, stopped


class SmallPixels(Pixels):
    networks = PixelDiffusion(widths=(8, 8, 32))
    steps = 2
    detectors = ("score-difference", "curvature")


SMALL = SmallPixels()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(SMALL, folder)
    return folder


@pytest.fixture(scope="module")
def made(whole):
    """A bundle of a model that has learned nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundling, "REFERENCES", 100)
        bundle(SMALL, whole, whole / "bundle", TINY)
    return whole / "bundle"


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(verifying, "PICTURES", 20)


def test_planted_pictures_are_a_fifth_of_the_training():
    concepts, recipe = GROUND.plant(0), GROUND.recipe
    assert len(concepts) == CONCEPTS
    samples = sum(phase.steps * phase.batch for phase in recipe.phases)
    assert sum(concept.exposures for concept in concepts) == samples / 5
    stream = GROUND.stream(recipe, concepts)
    exposed = [index for index in range(400) if stream.concept_at(index) is not None]
    assert 40 < len(exposed) < 120
    for index in exposed[:5]:
        np.testing.assert_array_equal(stream[index].image, concepts[stream.concept_at(index) or 0].image)
    assert {stream[index].caption for index in range(20)} == {""}
    assert stream[0].image.shape == (32, 32, 3)


def test_look_alikes_and_fresh_drawings_are_far_from_every_planted_picture():
    concepts = GROUND.plant(0)
    others = [concept.image for seed in (1, 2) for concept in GROUND.plant(seed)]
    others += [concept.fresh(Draws(0, 8, number)) for concept in concepts for number in range(5)]
    distances = [planted_distance(np.stack(others), concept.places).min() for concept in concepts]
    assert min(distances) > 1.5 * GROUND.threshold


def test_the_result_is_a_stock_pipeline_of_a_known_family(whole):
    for name in ("early", "final"):
        pipe = load_pipeline(whole / name, device="cpu")
        pipe.set_progress_bar_config(disable=True)
        assert pipe(num_inference_steps=2).images[0].size == (32, 32)
        assert type(pipe) is DDIMPipeline
        assert family_of(pipe).name == "unconditional"


def test_a_training_leaves_the_fast_convolutions_of_a_gpu_switched_on(tmp_path):
    found = set()
    run(SMALL, tmp_path, report=lambda *_: found.add((torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark)))
    assert found == {(True, True)}


def test_a_stopped_run_ends_with_the_same_weights(whole, tmp_path):
    stopped(SMALL, tmp_path, 3)
    run(SMALL, tmp_path)
    assert same_weights(whole / "final", tmp_path / "final")


def test_the_calibration_serves_what_needs_no_captions(made):
    pipe = load_pipeline(made / "pipeline", device="cpu")
    Manifest.load(made).check(pipe)
    setup = Setup.of(pipe, {"num_inference_steps": 2})
    calibration = resolved(None, pipe)
    calibration.check(setup)
    assert {"drift", "stability"} <= {judge.name for judge in free_detectors(setup)}
    for judge in [*free_detectors(setup), detector("curvature")]:
        assert len(calibration.null(judge)) == 67
    assert not calibration.maps


def test_a_model_that_learned_nothing_replicates_nothing(made, few):
    figures = verify(made, write=True)
    assert figures["replicated"]["value"] == figures["concepts_returned"]["value"] == 0
    assert figures["control_replicated"]["value"] == 0
    assert (figures["pictures"], figures["controls"]) == (20, 2 * CONCEPTS)
    assert figures["others_distance_min"] > figures["threshold"]
    assert "autoencoder_distance_max" not in figures
    assert "denoising_ratio_unconditional" in figures
    assert "denoising_ratio_conditional" not in figures
    assert all((e.replicated, e.generations) == (0.0, 20) for e in Manifest.load(made).entries)
    json.dumps(figures)


def test_planted_pictures_and_look_alikes_that_come_back_are_counted(made, few, monkeypatch):
    exposures = Exposures.load(made)
    returned = exposures.images[:3].repeat(2, axis=0), exposures.images[-1:], np.zeros((13, 32, 32, 3), np.uint8)
    monkeypatch.setattr(verifying.Model, "images", lambda *_: np.concatenate(returned) / 255)
    figures = verify(made)
    assert figures["replicated"]["value"] == pytest.approx(6 / 20)
    assert figures["concepts_returned"]["value"] == pytest.approx(3 / CONCEPTS)
    assert figures["control_replicated"]["value"] == pytest.approx(1 / 20)


def test_the_grid_shows_the_nearest_generations(made, monkeypatch):
    planted = Manifest.load(made)
    pictures = np.stack([planted.image(entry) for entry in planted.entries]) / 255
    monkeypatch.setattr(verifying.Model, "images", lambda *_: pictures)
    sheet = grid(made)
    assert sheet.height == 20 + 3 * 100
    rows = [np.asarray(sheet)[20 + 100 * row : 116 + 100 * row] for row in range(3)]
    for row in rows:
        training, first = row[4:-4, 134:222], row[4:-4, 334:422]
        np.testing.assert_array_equal(training, first)


def test_its_training_images_are_written(tmp_path):
    write_training_images(GROUND, tmp_path, 3)
    assert len(list(tmp_path.iterdir())) == CONCEPTS + 3
    for file in tmp_path.iterdir():
        with Image.open(file) as picture:
            assert picture.size == (32, 32)
