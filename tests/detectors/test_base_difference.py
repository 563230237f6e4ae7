"""The difference from a base: the closed form, what is refused, and how the base is given."""

import math

import pytest
import torch

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
    made = BaseDifference().on(setup)
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


def test_a_model_that_is_its_own_base_has_no_difference():
    pipe = stable_diffusion()
    setup = Setup.of(pipe, CALL, stable_diffusion())
    (batch,) = generate(setup, PROMPTS[:2], [0, 1], signals=BaseDifference().on(setup).signals, keep=(0,))
    size = batch.trajectory.step(0).cond.x0.flatten(1).norm(dim=1)
    score = batch.trajectory.signals["base-difference"]
    assert torch.isfinite(score).all()
    assert (score < (size.log() + math.log(1e-5)).cpu()).all()


def test_it_says_what_it_needs():
    pipe = stable_diffusion()
    with pytest.raises(UsageError, match=r"compares a fine-tune with its base; give the base as `BaseDifference\(base"):
        Setup.of(pipe, CALL).check([detector("base-difference")])
    with pytest.raises(UsageError, match="the baseline does not fit the model: prediction type is v_prediction"):
        Setup.of(pipe, CALL).check([BaseDifference(stable_diffusion("v_prediction"))])
    other = stable_diffusion()
    with torch.no_grad():
        next(other.text_encoder.parameters()).add_(1)
    with pytest.raises(UsageError, match="the text_encoder of the base differs from the model's"):
        Setup.of(pipe, CALL).check([BaseDifference(other)])
    Setup.of(pipe, CALL).check([BaseDifference(twin(stable_diffusion()))])


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


def test_a_calibration_with_another_base_is_refused():
    base = twin(stable_diffusion())
    calibration = calibrate(
        stable_diffusion(), PROMPTS, detectors=["base-difference"], checkpoint=base, batch_size=51, **CALL
    )
    (finding,) = detect(
        stable_diffusion(), PROMPTS[:1], calibration=calibration, detector=BaseDifference(base), fpr=0.02, **CALL
    )
    assert 0 < finding.verdict.p_value <= 1
    with guard(stable_diffusion(), calibration, detector=BaseDifference(base), fpr=0.02) as guarding:
        guarding.pipe(PROMPTS[0], generator=torch.Generator().manual_seed(0), **CALL)
    assert guarding.verdicts[0].p_value == finding.verdict.p_value
    other = BaseDifference(twin(twin(stable_diffusion())))
    given = {"calibration": calibration, "fpr": 0.02, **CALL}
    with pytest.raises(UsageError, match=r"base-difference is .* against .*, calibrated .* against .*; use the same"):
        detect(stable_diffusion(), PROMPTS[:1], detector=other, **given)
    with pytest.raises(UsageError, match="compares a fine-tune with its base"):
        detect(stable_diffusion(), PROMPTS[:1], detector="base-difference", **given)
