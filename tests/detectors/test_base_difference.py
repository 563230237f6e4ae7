"""The difference from a base: the closed form, what is refused, and how the base is given."""

import pytest
import torch
from diffusers import DDIMScheduler

from cryptomnesia import UsageError, calibrate, detect, guard
from cryptomnesia.detectors import BaseDifference, detector
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion
from cryptomnesia.testing.oracle_runs import CAPTION, SIDE, fixed_half, half_memorized
from cryptomnesia.testing.setups import twin
from cryptomnesia.tracing.generation import generate
from lora_files import write_lora


def test_the_score_is_that_of_the_closed_form():
    """Of a Gaussian of variance λ, x̂_0 = μ + ρ·(x − α·μ) with ρ = α·λ/(α²·λ + σ²)."""
    setup = half_memorized()
    made = BaseDifference().bound_to(setup)
    (batch,) = generate(setup, [CAPTION] * 3, [0, 1, 2], signals=made.signals, keep="all", decode=False)
    picture = torch.randn(SIDE * SIDE, generator=torch.Generator().manual_seed(0)).double().view(SIDE, SIDE)

    def distance(place):
        step = batch.trajectory.step(place)
        alpha, sigma = step.cond.alpha, step.cond.sigma
        rho = [alpha * variance / (alpha**2 * variance + sigma**2) for variance in (1e-4, 1.0)]
        away = (step.cond.x[:, 0].double() - alpha * picture)[:, fixed_half()]
        return ((rho[1] - rho[0]) * away).norm(dim=1).log()

    early, late = (torch.stack([distance(place) for place in places]) for places in (made.early, made.late))
    expected = 2 * early.mean(dim=0) - late.mean(dim=0)
    torch.testing.assert_close(batch.trajectory.signals["base-difference"].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_early_part_alone_is_known_early():
    setup = half_memorized()
    whole, early = (BaseDifference(late=late).bound_to(setup) for late in (BaseDifference.late, ()))
    (batch,) = generate(setup, [CAPTION] * 3, [0, 1, 2], signals=early.signals, decode=False)
    assert (whole.earliest(50), early.earliest(50)) == (46, 11)
    assert early.cost(setup) == whole.cost(setup) / 2
    assert torch.isfinite(batch.trajectory.signals["base-difference"]).all()


def test_half_precision_gives_the_same_scores():
    """Differences of half-precision estimates would be mostly rounding."""
    scores = []
    for kind in (torch.float32, torch.bfloat16):
        pipe, base = stable_diffusion(), twin(stable_diffusion())
        for network in (pipe.unet, base.unet, pipe.text_encoder, base.text_encoder, pipe.vae, base.vae):
            torch.nn.Module.to(network, kind)
        setup = Setup.of(pipe, {"num_inference_steps": 10, "guidance_scale": 2.0}, base)
        (batch,) = generate(setup, PROMPTS[:4], [0, 1, 2, 3], signals=BaseDifference().bound_to(setup).signals)
        scores.append(batch.trajectory.signals["base-difference"])
    torch.testing.assert_close(scores[1], scores[0], atol=0.3, rtol=0)


def test_it_says_what_it_needs():
    pipe = stable_diffusion()
    with pytest.raises(
        UsageError, match=r"compares a fine-tune with its base; give the loaded base as `BaseDifference\(base"
    ):
        Setup.of(pipe, CALL).check([detector("base-difference")])
    with pytest.raises(UsageError, match="the baseline does not fit the model: prediction type is v_prediction"):
        Setup.of(pipe, CALL).check([BaseDifference(stable_diffusion("v_prediction"))])
    other = twin(stable_diffusion())
    with torch.no_grad():
        next(other.text_encoder.parameters()).add_(1)
    with pytest.raises(UsageError, match="the text_encoder of the base differs from the model's"):
        Setup.of(pipe, CALL).check([BaseDifference(other)])
    Setup.of(pipe, CALL).check([BaseDifference(twin(stable_diffusion()))])
    for same in (pipe, stable_diffusion()):
        with pytest.raises(UsageError, match="the base is the same model as the fine-tune; load the base on its own"):
            Setup.of(pipe, CALL).check([BaseDifference(same)])
    with pytest.raises(UsageError, match="give the loaded base as"):
        Setup.of(pipe, CALL).check([BaseDifference("path/to/base")])
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UsageError, match="a run of 1 evaluations is too short for base-difference"):
        Setup.of(pipe, {"num_inference_steps": 1}).check([BaseDifference(twin(stable_diffusion()))])


def test_a_lora_of_the_text_encoder_is_refused(tmp_path):
    for name, text in (("unet", ()), ("both", ("q_proj",))):
        write_lora(tmp_path / name, stable_diffusion(), "to_q", seed=0, text=text)
    tuned = stable_diffusion()
    tuned.load_lora_weights(tmp_path / "unet")
    Setup.of(tuned, CALL).check([BaseDifference(stable_diffusion())])
    tuned = stable_diffusion()
    tuned.load_lora_weights(tmp_path / "both")
    with pytest.raises(UsageError, match="the text_encoder of the base differs from the model's"):
        Setup.of(tuned, CALL).check([BaseDifference(stable_diffusion())])


@pytest.fixture(scope="module")
def base():
    return twin(stable_diffusion())


@pytest.fixture(scope="module")
def calibration(base):
    given = {"detectors": ["base-difference"], "checkpoint": base, "batch_size": 51}
    return calibrate(stable_diffusion(), PROMPTS, **given, **CALL)


def test_detect_and_guard_judge_alike(base, calibration):
    judge, prompt = BaseDifference(base), "a green ring"
    (finding,) = detect(stable_diffusion(), prompt, calibration=calibration, detector=judge, fpr=0.02, **CALL)
    assert 0 < finding.verdict.p_value <= 1
    with guard(stable_diffusion(), calibration, detector=judge, fpr=0.02) as guarding:
        guarding.pipe(prompt, generator=torch.Generator().manual_seed(0), **CALL)
    assert guarding.verdicts[0].p_value == finding.verdict.p_value


def test_a_calibration_with_another_base_is_refused(calibration):
    other = BaseDifference(twin(twin(stable_diffusion())))
    given = {"calibration": calibration, "fpr": 0.02, **CALL}
    with pytest.raises(UsageError, match=r"base-difference is .* against .*, calibrated .* against .*; use the same"):
        detect(stable_diffusion(), PROMPTS[:1], detector=other, **given)
    with pytest.raises(UsageError, match="compares a fine-tune with its base"):
        detect(stable_diffusion(), PROMPTS[:1], detector="base-difference", **given)


def test_a_base_that_was_changed_is_refused(calibration):
    base = twin(stable_diffusion())
    judge = BaseDifference(base)
    found = detect(
        stable_diffusion(),
        ["a green ring"] * 2,
        calibration=calibration,
        detector=judge,
        fpr=0.02,
        batch_size=1,
        **CALL,
    )
    guarding = guard(stable_diffusion(), calibration, detector=judge, fpr=0.02)
    next(found)
    twin(base)
    with pytest.raises(UsageError, match=r"base-difference is .* calibrated"):
        next(found)
    with guarding, pytest.raises(UsageError, match=r"base-difference is .* calibrated"):
        guarding.pipe("a green ring", generator=torch.Generator().manual_seed(0), **CALL)
