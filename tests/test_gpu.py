"""What a CPU cannot show: the verbs on a GPU, in half precision, compiled and offloaded. Skipped without a GPU.

Initial noise comes from generators of the CPU, so a picture is that of the CPU up to rounding. Between two runs on one
GPU nothing differs, and observing changes no bit of a picture.
"""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from cryptomnesia import (
    BaseDifference,
    ImageIndex,
    audit,
    calibrate,
    detect,
    find,
    guard,
    load_pipeline,
    localize,
    match,
    watch,
)
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.detectors import detector
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground import BUNDLES
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.fine_tune import FineTune, Tuning
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.grounds.scenes import GROUND
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.train import train
from cryptomnesia.registry import entries
from cryptomnesia.testing.miniatures import CALL as SHORT
from cryptomnesia.testing.miniatures import stable_diffusion

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; none here"),
    # what torch says while it compiles, captures graphs or starts processes differs between its versions
    pytest.mark.filterwarnings("default"),
]

DTYPES = ("float32", "float16", "bfloat16")
MODELS = ("bundled", "bundled:drawings")
LOCALIZERS = ("bright-ending", "collapse", "curvature-difference", "score-difference")
CALL = {"num_inference_steps": 8}
"""Few steps, and the guidance scale of the model."""
TOLERANCE = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.4}
"""Distance of a run's norms from those of the CPU in float32, relative. Convolutions on a GPU round as TF32 does."""

on_all = pytest.mark.parametrize(("model", "dtype"), [(model, dtype) for model in MODELS for dtype in DTYPES])
in_all = pytest.mark.parametrize("dtype", DTYPES)


def manifest(model):
    return Manifest.load(BUNDLES / (model.partition(":")[2] or "scenes"))


@cache
def planted(model):
    """Captions and entries of two pictures of the ladder's top."""
    truth = manifest(model)
    top = [entry for entry in truth.entries if entry.planted and entry.exposures == truth.top]
    top.sort(key=lambda entry: -(entry.replicated or 0))
    return top[:2]


def prompts(model):
    """Two planted captions and two ordinary ones."""
    return [*(entry.captions[0] for entry in planted(model)), *manifest(model).control_captions("evaluation", 2)]


def loaded(model, dtype, device=DEVICE):
    pipe = load_pipeline(model, device=device, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def prepared(model, dtype):
    """A pipeline on the GPU that no test changes, and its calibration with a map."""
    pipe = loaded(model, dtype)
    references = manifest(model).control_captions("calibration", 102)
    return pipe, calibrate(pipe, references, localizers="score-difference", batch_size=51, **CALL)


def picture(pipe, prompt, **more):
    """The picture of a seed as the pipeline gives it, (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, output_type="pt", **CALL, **more).images


def check_observation_changes_nothing(pipe, prompt):
    """Watched and unwatched pictures are the same, bit by bit; what was seen, (1, …)."""
    plain = picture(pipe, prompt)
    assert torch.equal(plain, picture(pipe, prompt)), "two runs without a watch differ already"
    with watch(pipe, keep="all") as seen:
        assert torch.equal(picture(pipe, prompt), plain)
    assert torch.equal(picture(pipe, prompt), plain)
    assert plain.isfinite().all()
    assert seen.trajectory.complete
    assert seen.trajectory.norms["delta"].isfinite().all()
    return seen.trajectory


@on_all
def test_observation_changes_no_bit(model, dtype):
    pipe, _ = prepared(model, dtype)
    assert pipe.unet.device.type == DEVICE
    assert pipe.unet.dtype == getattr(torch, dtype)
    trajectory = check_observation_changes_nothing(pipe, prompts(model)[0])
    other = loaded(model, "float32", "cpu")
    with watch(other) as expected:
        picture(other, prompts(model)[0])
    found, wanted = trajectory.norms["z"], expected.trajectory.norms["z"]
    assert (found - wanted).norm() < TOLERANCE[dtype] * wanted.norm()


@on_all
def test_the_initial_noise_is_that_of_the_cpu(model, dtype):
    noise = []
    for pipe in (prepared(model, dtype)[0], loaded(model, dtype, "cpu")):
        with watch(pipe, keep="all") as seen:
            pipe(prompts(model)[0], num_inference_steps=1, generator=torch.Generator().manual_seed(3))
        noise.append(seen.trajectory.steps[0].sample.cpu())
    assert torch.equal(*noise)


@on_all
def test_calibrating_records_finite_numbers(model, dtype):
    pipe, calibration = prepared(model, dtype)
    assert calibration.runs.norms.keys() >= {"delta", "z"}
    for name in ("delta", "z"):
        assert calibration.runs.norms[name].isfinite().all()
    assert calibration.fingerprint == Setup.of(pipe, CALL).fingerprint


@on_all
def test_detecting_flags_what_is_planted(model, dtype):
    pipe, calibration = prepared(model, dtype)
    found = list(detect(pipe, prompts(model), calibration=calibration, fpr=0.05, localizer="score-difference", **CALL))
    assert [finding.verdict.flagged for finding in found] == [True, True, False, False]
    for finding in found:
        assert 0 < finding.verdict.p_value <= 1
        assert finding.image.isfinite().all()
    assert found[0].located.maps["score-difference"].isfinite().all()


@pytest.mark.parametrize("model", MODELS)
def test_the_calibration_that_comes_with_the_model_holds_on_a_gpu(model):
    pipe, _ = prepared(model, "float32")
    verdicts = [finding.verdict for finding in detect(pipe, prompts(model))]
    others = [finding.verdict for finding in detect(loaded(model, "float32", "cpu"), prompts(model))]
    assert [verdict.flagged for verdict in verdicts] == [verdict.flagged for verdict in others]
    scores = [verdict.score for verdict in verdicts]
    assert scores == pytest.approx([verdict.score for verdict in others], rel=0.1)


@on_all
def test_localizing_gives_finite_maps_and_masks(model, dtype):
    pipe, calibration = prepared(model, dtype)
    (found,) = localize(pipe, prompts(model)[:1], localizers=LOCALIZERS, **CALL)
    for name in LOCALIZERS:
        assert found.maps[name].isfinite().all()
        assert found.maps[name].std() > 0
    (found,) = localize(pipe, prompts(model)[:1], localizers="score-difference", calibration=calibration, **CALL)
    mask = found.masks["score-difference"]
    assert mask.pixels.any()
    assert 0 < mask.p_value <= 1


@on_all
def test_a_guard_returns_ordinary_pictures_bit_by_bit_and_remakes_others(model, dtype):
    pipe, calibration = prepared(model, dtype)
    memorized, _, ordinary, _ = prompts(model)
    plain = picture(pipe, ordinary)
    with guard(pipe, calibration, fpr=0.05) as guarding:
        assert torch.equal(picture(pipe, ordinary), plain)
    assert not guarding.verdicts[0].flagged
    with guard(pipe, calibration, policy="block", fpr=0.05) as guarding:
        assert (picture(pipe, memorized) == 0).all()
    assert guarding.verdicts[0].flagged
    with guard(pipe, calibration, policy="mitigate", fpr=0.05) as guarding:
        returned = picture(pipe, memorized)
    assert guarding.verdicts[0].action != "none"
    assert returned.isfinite().all()
    assert not torch.equal(returned, picture(pipe, memorized))


@on_all
def test_pictures_on_the_gpu_are_matched(model, dtype, tmp_path):
    pipe, _ = prepared(model, dtype)
    truth = manifest(model)
    pictures = [truth.image(entry) for entry in truth.entries if entry.planted]
    rng = np.random.default_rng(0)
    others = [rng.integers(0, 256, pictures[0].shape, dtype=np.uint8) for _ in range(40)]
    index = ImageIndex.build([Image.fromarray(one) for one in (*pictures, *others)], tmp_path / "index")
    generator = torch.Generator().manual_seed(0)
    made = pipe(prompts(model)[:1], generator=generator, output_type="pt").images
    (found,) = match(made, index, fpr=0.05)
    (on_cpu,) = match(made.float().cpu(), index, fpr=0.05)
    assert 0 < found.p_value <= 1
    assert (found.path, found.reproduced) == (on_cpu.path, on_cpu.reproduced)


@on_all
def test_an_audit_judges_every_prompt(model, dtype, tmp_path):
    references = tmp_path / "references.txt"
    references.write_text("\n".join(manifest(model).control_captions("calibration", 102)))
    run = audit(
        model,
        prompts(model),
        tmp_path / "run",
        references=references,
        steps=8,
        fpr=0.05,
        batch_size=51,
        device=DEVICE,
        dtype=dtype,
    )
    found = outcome(run)
    assert {judged.prompt: judged.p_value <= 0.05 for judged in found.prompts} == dict(
        zip(prompts(model), (True, True, False, False), strict=True)
    )
    assert not found.missing


@in_all
def test_finding_answers_for_every_picture(dtype, tmp_path):
    truth = manifest("bundled")
    looked_for = [Image.fromarray(truth.image(entry)) for entry in planted("bundled")]
    controls = [Image.fromarray(GROUND.ordinary(Draws(97, seed), GROUND.frames[0])[0]) for seed in range(19)]
    found = find("bundled", looked_for, controls=controls, alpha=0.1, device=DEVICE, dtype=dtype, **CALL)
    assert len(found.answers) == 2
    for answer in found.answers:
        assert 0 < answer.p_value <= 1
        assert answer.verdict != "undecided"


@in_all
@pytest.mark.parametrize("name", sorted(entries("detector")))
def test_every_detector_gives_a_finite_score(name, dtype):
    pipe = stable_diffusion().to(DEVICE, getattr(torch, dtype))
    method = BaseDifference(stable_diffusion().to(DEVICE, getattr(torch, dtype))) if name == "base-difference" else None
    method = method or detector(name)
    with watch(pipe, norms=method.norms, signals=method.signals) as seen:
        generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
        pipe(["a red circle"] * 8, generator=generators, output_type="latent", **SHORT)
    score = method.score(seen.trajectory.rows([0, 1]), seen.trajectory.rows([*range(2, 8)]))
    assert score.isfinite().all()


@pytest.mark.parametrize(("dtype", "how"), [("float32", "wrapped"), ("float16", "in place"), ("bfloat16", "wrapped")])
def test_a_compiled_denoiser_is_seen_and_its_pictures_stay(dtype, how):
    _, calibration = prepared("bundled", dtype)
    pipe = loaded("bundled", dtype)
    memorized, _, ordinary, _ = prompts("bundled")
    with watch(pipe) as seen:
        eager = picture(pipe, memorized)
    if how == "in place":
        pipe.unet.compile()
    else:
        pipe.unet = torch.compile(pipe.unet)
    assert Setup.of(pipe, CALL).fingerprint["weights"] == calibration.fingerprint["weights"]
    trajectory = check_observation_changes_nothing(pipe, memorized)
    assert (trajectory.norms["z"] - seen.trajectory.norms["z"]).norm() < 0.2 * seen.trajectory.norms["z"].norm()
    assert (picture(pipe, memorized) - eager).abs().mean() < 0.1
    # a guard watches every call anew: that must not compile the network anew
    with torch._dynamo.config.patch(error_on_recompile=True), guard(pipe, calibration, fpr=0.05) as guarding:
        picture(pipe, memorized)
        assert guarding.verdicts[0].flagged
        plain = picture(pipe, ordinary)
        assert not guarding.verdicts[0].flagged
    assert torch.equal(picture(pipe, ordinary), plain)


@in_all
@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_pipeline_is_the_pipeline(dtype, how):
    on_gpu, calibration = prepared("bundled", dtype)
    memorized, _, ordinary, _ = prompts("bundled")
    pipe = loaded("bundled", dtype, "cpu")
    getattr(pipe, how)(device=DEVICE)
    assert Setup.of(pipe, CALL).fingerprint == calibration.fingerprint
    check_observation_changes_nothing(pipe, memorized)
    with guard(pipe, calibration, fpr=0.05) as guarding:
        for prompt in (memorized, ordinary):
            picture(pipe, prompt)
            verdict = guarding.verdicts[0]
            (expected,) = detect(on_gpu, prompt, calibration=calibration, fpr=0.05, batch_size=1, **CALL)
            assert verdict.flagged == expected.verdict.flagged
            assert verdict.score == pytest.approx(expected.verdict.score, rel=TOLERANCE[dtype])
    names = ["curvature-difference", "score-difference"]
    (found,) = localize(pipe, [memorized], localizers=names, **CALL)
    (expected,) = localize(on_gpu, [memorized], localizers=names, **CALL)
    for name in names:
        assert found.maps[name].isfinite().all()
        assert torch.corrcoef(torch.stack([found.maps[name].flatten(), expected.maps[name].flatten()]))[0, 1] > 0.9


def test_a_ground_and_a_fine_tune_are_trained(tmp_path):
    concepts = tuple(concept for concept in GROUND.plant(0) if concept.exposures == 4)
    recipe = Recipe((Phase(8, 4, 7e-4),), autoencoder_steps=3, autoencoder_batch=4, warmup=2, kept=(2,))
    train(GROUND, tmp_path / "ground", recipe, concepts=concepts, device=DEVICE)
    further = FineTune(ground_of("scenes"), Tuning(rate=1e-4, exposures=4, pictures=8))
    train(further, tmp_path / "further", device=DEVICE)
    for name in ("ground", "further"):
        pipe = StableDiffusionPipeline.from_pretrained(tmp_path / name / "final")
        assert all(weight.isfinite().all() for weight in pipe.unet.parameters())
    before = load_file(BUNDLES / "scenes/pipeline/unet/diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "further/final/unet/diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before)
