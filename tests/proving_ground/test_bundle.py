import json

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from tiny_pipelines import stable_diffusion

from cryptomnesia import Calibration, Sampling
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.proving_ground import bundle as bundling
from cryptomnesia.proving_ground.bundle import bundle, control_captions
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.planted import TOP_RUNG, plant

CONCEPTS = plant(0)


def test_the_bundle_is_small_half_precision_and_stock():
    assert sum(file.stat().st_size for file in BUNDLE.rglob("*") if file.is_file()) <= 40e6
    for name in ("pipeline", "early"):
        for weights in (BUNDLE / name).rglob("*.safetensors"):
            with safe_open(weights, framework="pt") as file:
                assert {file.get_slice(key).get_dtype() for key in file.keys()} <= {"F16", "I64"}  # noqa: SIM118
        pipe = StableDiffusionPipeline.from_pretrained(BUNDLE / name)
        assert isinstance(pipe.scheduler, PNDMScheduler)
        assert pipe.scheduler.config.clip_sample is False
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            assert {weight.dtype for weight in part.parameters()} == {torch.float32}
        assert any(
            "attn2" in name and name.startswith("down_blocks.0") for name, _ in pipe.unet.named_parameters()
        )  # cross-attention at the highest resolution


def test_manifest_and_calibration_belong_to_the_bundled_model():
    pipe = bundling.with_ddim(bundling.load(BUNDLE / "pipeline"))
    manifest = Manifest.load(BUNDLE)
    manifest.check(pipe)
    calibration = Calibration.load(BUNDLE / "calibration.safetensors")
    calibration.check(pipe, Sampling(manifest.steps, manifest.guidance))
    assert calibration.prompts == bundling.REFERENCES
    assert [entry.id for entry in manifest.entries] == [concept.id for concept in CONCEPTS]
    assert all(entry.captions == c.captions for entry, c in zip(manifest.entries, CONCEPTS, strict=True))
    assert all(entry.generations == 8 for entry in manifest.entries if entry.planted)


def test_the_published_figures_are_those_of_the_manifest(request):
    manifest = Manifest.load(BUNDLE)
    figures = json.loads((request.config.rootpath / "docs/results/proving_ground.json").read_text())
    for kind in ("verbatim", "template"):
        shares = [e.replicated for e in manifest.entries if e.kind == kind and e.exposures == TOP_RUNG]
        assert figures[f"{kind}_replicated"] == pytest.approx(sum(shares) / len(shares))


def test_control_captions_are_never_planted_and_differ_by_purpose():
    planted = {caption for concept in CONCEPTS for caption in concept.captions}
    sets = [control_captions(purpose, 50, CONCEPTS) for purpose in bundling.PURPOSES]
    for captions in sets:
        assert len(set(captions)) == 50
        assert not planted & set(captions)
    assert sets[0] != sets[1] != sets[2]


def test_bundling_makes_a_folder_that_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(bundling, "REFERENCES", 100)
    monkeypatch.setattr(bundling, "STEPS", 2)
    done = []
    bundle(stable_diffusion(), stable_diffusion(), CONCEPTS[:3], tmp_path / "bundle", progress=done.append)
    assert done[-1] == 100
    pipe = bundling.with_ddim(bundling.load(tmp_path / "bundle" / "pipeline"))
    manifest = Manifest.load(tmp_path / "bundle")
    manifest.check(pipe)
    Calibration.load(tmp_path / "bundle" / "calibration.safetensors").check(pipe, Sampling(2, manifest.guidance))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
