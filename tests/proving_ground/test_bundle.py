import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors import safe_open

from cryptomnesia import Calibration, load_pipeline
from cryptomnesia.calibration.stored import calibration_of, resolved
from cryptomnesia.detectors import detector, free_detectors
from cryptomnesia.files import prompts_digest
from cryptomnesia.localizers import localizer
from cryptomnesia.pipelines.fingerprint import weights_digest
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.word_tokenizer import tokenizer
from cryptomnesia.proving_ground import BUNDLE, BUNDLES, denoising, recognizer
from cryptomnesia.proving_ground import bundle as bundling
from cryptomnesia.proving_ground import verify as verifying
from cryptomnesia.proving_ground.bundle import bundle
from cryptomnesia.proving_ground.denoising import Exposures
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import grounds
from cryptomnesia.proving_ground.grounds.scenes import GROUND, TOP_RUNG, Scenes
from cryptomnesia.proving_ground.latent import MAX_TOKENS
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.recognizer import Recognizer, train_recognizer
from cryptomnesia.proving_ground.show import grid
from cryptomnesia.proving_ground.verify import verify

CONCEPTS = GROUND.plant(0)


@pytest.mark.parametrize("folder", sorted(BUNDLES.iterdir()), ids=lambda folder: folder.name)
def test_every_bundle_is_whole(folder):
    ground = grounds()[folder.name]
    assert Manifest.load(folder).ground == ground.name
    assert len(Exposures.load(folder).images) > 0
    assert (folder / "early").exists() == ground.with_early
    if ground.captioned:
        assert Recognizer.load(folder).groups == ground.visible


def test_the_bundle_is_half_precision_and_stock():
    for name in ("pipeline", "early"):
        for weights in (BUNDLE / name).glob("*/*.safetensors"):
            with safe_open(weights, framework="pt") as file:
                assert {file.get_slice(key).get_dtype() for key in file.keys()} <= {"F16", "I64"}
        pipe = StableDiffusionPipeline.from_pretrained(BUNDLE / name)
        assert isinstance(pipe.scheduler, PNDMScheduler)
        assert pipe.scheduler.config.clip_sample is False
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            assert {weight.dtype for weight in part.parameters()} == {torch.float32}
        assert any(
            "attn2" in name and name.startswith("down_blocks.0") for name, _ in pipe.unet.named_parameters()
        )  # cross-attention at the highest resolution


def test_manifest_and_calibration_belong_to_the_bundled_model():
    pipe = load_pipeline("bundled", device="cpu")
    early = load_pipeline(str(BUNDLE / "early"), device="cpu")
    manifest = Manifest.load(BUNDLE)
    manifest.check(pipe)
    setup = Setup.of(pipe, {"num_inference_steps": manifest.steps, "guidance_scale": manifest.guidance}, early)
    calibration = Calibration.load(BUNDLE / "pipeline" / "calibration.safetensors")
    calibration.check(setup)
    assert len(calibration) == bundling.REFERENCES
    captions = manifest.control_captions("calibration", bundling.REFERENCES)
    assert calibration.prompts_sha256 == prompts_digest(captions)
    for name in GROUND.detectors:
        calibration.check_detector(detector(name))
    calibration.check_localizers([localizer(name) for name in GROUND.localizers], weights_digest(early))
    assert [entry.id for entry in manifest.entries] == [concept.id for concept in CONCEPTS]
    assert all(entry.captions == c.captions for entry, c in zip(manifest.entries, CONCEPTS, strict=True))
    assert all(entry.generations == 8 for entry in manifest.entries if entry.planted)


def test_the_bundled_calibration_is_of_the_default_call_with_the_models_own_scheduler():
    pipe = load_pipeline("bundled", device="cpu")
    calibration = resolved(None, pipe)
    assert calibration.fingerprint["scheduler"] == "PNDMScheduler"
    calibration.check(Setup.of(pipe, {}))


def test_the_bundled_calibration_supports_every_detector_that_costs_nothing():
    setup = Setup.of(load_pipeline("bundled", device="cpu"), {})
    calibration = resolved(None, setup.pipe)
    detectors = free_detectors(setup)
    assert {"drift", "stability", "guidance-mean"} <= {judge.name for judge in detectors}
    for judge in [*detectors, *map(detector, GROUND.detectors)]:
        assert calibration.null(judge).shape == (300, calibration.evaluations)


@pytest.mark.parametrize("ground", [g for g in grounds().values() if g.bundle.exists()], ids=lambda g: g.name)
def test_the_published_figures_are_those_of_the_manifest(request, ground):
    file = request.config.rootpath / "docs/results/grounds.json"
    if not file.exists():
        pytest.skip("the grounds have not been measured")
    figures = json.loads(file.read_text(encoding="utf-8"))["grounds"][ground.name]
    manifest = Manifest.load(ground.bundle)
    assert (figures["steps"], figures["threshold"]) == (manifest.steps, ground.threshold)
    top = [entry for entry in manifest.entries if entry.planted and entry.exposures == manifest.top]
    if not ground.captioned:
        assert figures["concepts_returned"]["value"] == pytest.approx(np.mean([e.replicated > 0 for e in top]))
        return
    assert figures["guidance"] == manifest.guidance
    for kind in {entry.kind for entry in top}:
        shares = [entry.replicated for entry in top if entry.kind == kind and entry.wording != "mode"]
        assert figures[f"{kind}_replicated"]["value"] == pytest.approx(np.mean(shares))


class FewScenes(Scenes):
    """The first concept of a few rungs, in few steps."""

    steps = 2
    detectors = ("score-difference",)
    localizers = ("score-difference", "score-difference-checkpoint")

    def plant(self, seed):
        every = super().plant(seed)
        rungs = (("verbatim", TOP_RUNG), ("template", TOP_RUNG), ("template", 4), ("rare_name", 128))
        return tuple(next(c for c in every if (c.kind, c.exposures) == rung) for rung in rungs)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bundle of a model that has learned nothing, with a few concepts."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("final", "early"):
        untrained().save_pretrained(folder / "run" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundling, "REFERENCES", 100)
        patch.setattr(bundling, "train_recognizer", partial(train_recognizer, steps=2))
        patch.setattr(recognizer, "_MOMENTS", 200)
        done = []
        bundle(FewScenes(), folder / "run", folder / "bundle", progress=lambda *found: done.append(found))
    assert ("recognizer", 2, 2) in done
    assert done[-1] == ("calibration", 100, 100)
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "run"]
    return folder / "bundle"


def untrained():
    torch.manual_seed(0)
    tokens, networks = tokenizer(GROUND.lexicon(CONCEPTS), MAX_TOKENS), GROUND.networks
    return networks.pipeline(networks.vae(), networks.text_encoder(tokens), tokens, networks.unet())


def test_a_bundle_can_be_used(tiny):
    pipe = load_pipeline(str(tiny / "pipeline"), device="cpu")
    early = load_pipeline(str(tiny / "early"), device="cpu")
    manifest = Manifest.load(tiny)
    manifest.check(pipe)
    assert calibration_of(pipe) == tiny / "pipeline" / "calibration.safetensors"
    calibration = resolved(None, pipe)
    calibration.check(Setup.of(pipe, {"num_inference_steps": 2, "guidance_scale": manifest.guidance}))
    calibration.check_detector(detector("score-difference"))
    names = ("score-difference", "score-difference-checkpoint")
    calibration.check_localizers([localizer(name) for name in names], weights_digest(early))
    assert all(entry.replicated is None for entry in manifest.entries)
    assert (manifest.ground, manifest.guidance, manifest.steps) == ("scenes", GROUND.guidances[0], 2)
    assert len(Exposures.load(tiny).images) == 6
    assert Recognizer.load(tiny).groups == GROUND.visible


@pytest.mark.slow
def test_a_model_that_learned_nothing_replicates_nothing(tiny, monkeypatch):
    monkeypatch.setattr(verifying, "CONTROLS", 20)
    monkeypatch.setattr(verifying, "CAPTIONS", 16)
    monkeypatch.setattr(verifying, "SCALES", (1.0, 2.0))
    monkeypatch.setattr(denoising, "_LEVELS", (150, 850))
    reported = []
    figures = verify(tiny, write=True, progress=lambda what, done, total: reported.append((what, done / total)))
    for key in ("verbatim_replicated", "template_replicated", "control_replicated"):
        assert figures[key]["value"] == figures[key]["low"] == 0 < figures[key]["high"]
    assert {kind: list(rungs) for kind, rungs in figures["dose_response"].items()} == {
        "verbatim": [str(TOP_RUNG)],
        "template": ["4", str(TOP_RUNG)],
    }
    assert figures["dose_response"]["template"]["4"]["value"] == 0
    for branch in ("conditional", "unconditional"):
        low, high = figures[f"denoising_spread_{branch}"]
        assert 0 < low < 1 < high
        assert low * 0.8 < figures[f"denoising_ratio_{branch}"] < high * 1.2
        assert 0 <= figures[f"denoising_below_{branch}"] <= 1
    assert list(figures["guidance_curve"]) == ["1.0", "2.0"]
    assert figures["best_guidance"] in (1.0, 2.0)
    scales = sorted(map(str, {1.5, 3.0, 5.0, figures["best_guidance"]}))
    assert {solver: sorted(found) for solver, found in figures["settings"].items()} == {
        "PNDMScheduler": scales,
        "DDIMScheduler": scales,
    }
    assert figures["others_distance_min"] > figures["threshold"] > 0
    assert figures["indistinct"] == 0
    assert figures["look_alike_replicated"]["value"] == 0
    assert figures["look_alikes"] == len(Manifest.load(tiny).look_alikes["evaluation"]) > 0
    assert figures["bytes"] > 1e6
    assert figures["scheduler"] == "PNDMScheduler"
    assert ("captions, guidance 2", 1.0) in reported
    assert (f"look-alikes of planted captions, guidance {figures['best_guidance']:g}", 1.0) in reported
    # what is written into the manifest was generated at its own guidance scale
    assert reported[-1] == ("planted, PNDMScheduler, guidance 1.5", 1.0)
    assert [entry.generations for entry in Manifest.load(tiny).entries] == [8, 8, 8, 0]
    json.dumps(figures)


def test_the_grid_shows_every_rung(tiny):
    sheet = grid(tiny)
    assert sheet.height == 20 + 3 * 100
    assert np.asarray(sheet)[30:110, 120:200].std() > 0


def test_a_planted_image_counts_as_replicated(tiny, monkeypatch):
    """Training images in the place of generations all replicate, and their free regions vary as training images do."""
    manifest = Manifest.load(tiny)
    by_caption = {caption: concept for concept in CONCEPTS for caption in concept.captions}
    draws = iter(range(10**6))

    def memorized(model, prompts, *_):
        return np.stack([by_caption[prompt].exposure(Draws(1, next(draws))) for prompt in prompts]) / 255

    monkeypatch.setattr(verifying.Model, "images", memorized)
    model = verifying.Model(SimpleNamespace(scheduler=None), manifest, GROUND, manifest.guidance)
    planted = [entry for entry in manifest.entries if entry.planted]
    generated = verifying.replication(model, planted, 8, lambda *_: None)
    assert all(result.replicated.all() for result in generated)
    rates = verifying._rates(generated, manifest)
    assert rates["verbatim_replicated"]["value"] == rates["template_replicated"]["value"] == 1.0
    assert rates["free_region_spread"] == pytest.approx(1.0, abs=0.25)
