"""A guard with several calibrations, and calls that none of them fits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from cryptomnesia import Regenerate, Rephrasing, StabilityRule, UsageError, calibrate, guard
from cryptomnesia.guarding.black import black_latents
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion
from guarded_calls import call
from nulls import EVERYTHING, by_norms, flagging


@pytest.fixture(scope="session")
def shorter():
    """A calibration of the same pipeline for 2 steps and a negative prompt."""
    return calibrate(
        stable_diffusion(),
        PROMPTS,
        batch_size=34,
        num_inference_steps=2,
        guidance_scale=2.0,
        negative_prompt="a blue star",
    )


SHORT = {"num_inference_steps": 2, "negative_prompt": "a blue star"}


def test_every_call_is_judged_by_the_calibration_of_its_settings(pipe, calibration, shorter, tmp_path):
    shorter.save(tmp_path / "shorter.safetensors")
    alone = {}
    for name, fitted, settings in (("usual", calibration, {}), ("short", shorter, SHORT)):
        with guard(pipe, fitted, fpr=0.5) as guarding:
            call(pipe, **settings)
        alone[name] = guarding.verdicts
    for given in ([calibration, shorter], [tmp_path / "shorter.safetensors", calibration]):
        with guard(pipe, given, fpr=0.5) as guarding:
            for name, settings in (("usual", {}), ("short", SHORT), ("usual", {})):
                call(pipe, **settings)
                assert guarding.verdicts == alone[name]
            assert guarding.calibration is guarding.calibrations[0]
            picked = guarding.calibration_for(guidance_scale=2.0, **SHORT)
            assert picked.fingerprint == shorter.fingerprint


def test_images_are_made_again_under_the_picked_calibration(pipe, calibration, shorter):
    """Only the second calibration flags, and its runs have two evaluations."""
    everything = by_norms(shorter)
    ordinary = flagging(calibration, 1e9, guard(pipe, calibration, detector="stability", fpr=0.5).detector)
    always = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
    for policy, mitigation, action in (
        ("mitigate", always, "mitigated"),
        (Regenerate(retries=1), always, "mitigated"),
        (Regenerate(retries=1), Rephrasing(most=1), "withheld"),
    ):
        settings = {**everything, "calibration": [ordinary, everything["calibration"]]}
        with guard(pipe, **settings, policy=policy, mitigation=mitigation) as guarding:
            call(pipe, **SHORT)
            (verdict,) = guarding.verdicts
            assert verdict.action == action
            assert verdict.corrected == ((0, 1) if action == "mitigated" else ())
            call(pipe)
            # a correction acts on every run
            assert guarding.verdicts[0].action == ("mitigated" if policy == "mitigate" else "none")


def test_the_set_up_is_read_once_per_call(pipe, calibration, shorter, monkeypatch):
    read = []

    def counted(*args):
        read.append(args)
        return fingerprint(*args)

    monkeypatch.setattr("cryptomnesia.pipelines.setup.fingerprint", counted)
    with guard(pipe, [shorter, calibration], fpr=0.5) as guarding:
        read.clear()
        call(pipe)
    assert len(read) == len(guarding.verdicts) == 1


def test_calibrations_that_do_not_belong_are_refused(pipe, calibration, shorter, tmp_path):
    print_of = calibration.fingerprint
    other = replace(shorter, fingerprint={**shorter.fingerprint, "weights": {"unet": "0" * 64}})
    file = tmp_path / "other.safetensors"
    other.save(file)
    for given, message in [
        ([], "got no calibration in the list"),
        ([calibration, other], r"calibration 2: .*another set-up: weights\.text_encoder is .*weights\.unet is"),
        ([calibration, file], r"calibration 2 \(.*other\.safetensors\): .*weights\.unet is"),
        ([shorter, calibration, replace(shorter)], "calibrations 1 and 3 were made with the same set-up"),
        ([calibration, tmp_path / "absent"], "no calibration file"),
        ([replace(calibration, fingerprint={**print_of, "records": 1}), shorter], "calibration 1: .* another set-up"),
    ]:
        with pytest.raises(UsageError, match=message) as refused:
            guard(pipe, given, fpr=0.5)
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=r"calibration 1: got decide_by=3 of 2 evaluations"):
        guard(pipe, [shorter, calibration], fpr=0.5, decide_by=3)
    unguided = replace(calibration, fingerprint={**print_of, "guidance": 1.0})
    with pytest.raises(UsageError, match="calibration 2: guidance-first needs the unconditional branch"):
        guard(pipe, [calibration, unguided], fpr=0.5, detector="guidance-first")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UsageError, match=r"none of the 2 calibrations .* nearest is 1: scheduler is EulerDiscrete"):
        guard(pipe, [calibration, shorter], fpr=0.5)


def test_a_scheduler_may_be_exchanged_between_calls(pipe, calibration):
    own, other = pipe.scheduler, EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = other
    euler = calibrate(pipe, PROMPTS, batch_size=34, **CALL)
    pipe.scheduler = own
    with guard(pipe, [calibration, euler], fpr=0.5) as guarding:
        call(pipe)
        first = guarding.verdicts
        pipe.scheduler = other
        call(pipe)
        assert guarding.verdicts[0].score != first[0].score
        assert guarding.verdicts[0].p_value == pytest.approx(
            euler.p_value(guarding.detector, torch.tensor([guarding.verdicts[0].score])).item()
        )


UNKNOWN = [
    ({"num_inference_steps": 4}, "steps is 4, calibrated 3"),
    ({"guidance_scale": 5.0}, r"guidance is 5\.0, calibrated 2\.0"),
    ({"height": 32, "width": 32}, "height is 32, calibrated None; width is 32"),
    ({"negative_prompt": "a ring"}, r"options\.negative_prompt is a ring, calibrated None"),
]


@pytest.mark.parametrize(("settings", "reason"), UNKNOWN)
@pytest.mark.parametrize("policy", ["observe", "mitigate"])
def test_a_call_that_no_calibration_fits(pipe, calibration, shorter, settings, reason, policy):
    plain = call(pipe, **settings)
    usual = {"policy": policy, "fpr": 0.5}
    with guard(pipe, [calibration, shorter], **usual) as guarding:
        call(pipe)
        with pytest.raises(UsageError, match=f"none of the 2 calibrations was made with this set-up; .* 1: {reason}"):
            call(pipe, **settings)
        assert guarding.verdicts == ()
    heard = []
    for unknown, action in (("allow", "allowed"), ("block", "withheld")):
        with guard(pipe, [calibration, shorter], unknown=unknown, on_verdict=heard.append, **usual) as guarding:
            found = call(pipe, **settings)
        (verdict,) = guarding.verdicts
        assert heard.pop() == verdict
        assert (verdict.action, verdict.prompt, verdict.detector) == (action, "a red circle", "early-detail")
        assert (verdict.clean, verdict.flagged, verdict.answer) == (False, False, "could not tell")
        assert np.isnan([verdict.score, verdict.p_value]).all()
        assert verdict.reason.startswith("could not tell: none of the 2 calibrations")
        assert np.array_equal(found, plain if unknown == "allow" else np.zeros_like(plain))


def test_what_cannot_be_fingerprinted_is_unknown(pipe, calibration):
    settings = {"cross_attention_kwargs": {"odd": object()}}
    with guard(pipe, calibration, fpr=0.5), pytest.raises(UsageError, match="whose content a calibration"):
        call(pipe, **settings)
    with guard(pipe, calibration, fpr=0.5, unknown="block") as guarding:
        images = call(pipe, ["a red circle", "a blue star"], seeds=(0, 1), **settings)
    assert not images.any()
    assert [(verdict.image, verdict.prompt) for verdict in guarding.verdicts] == [
        (0, "a red circle"),
        (1, "a blue star"),
    ]
    assert "whose content a calibration cannot hold" in guarding.verdicts[1].reason


def test_a_detector_that_needs_words_cannot_tell_of_embeddings(pipe):
    calibration = calibrate(pipe, PROMPTS, detectors="bright-ending", batch_size=51, **CALL)
    embeds, _ = pipe.encode_prompt(["a red circle"], "cpu", 1, False)
    with guard(pipe, calibration, fpr=0.5, detector="bright-ending", policy="block") as guarding:
        assert call(pipe, "a red circle").any() or guarding.verdicts[0].flagged
        (told,) = guarding.verdicts
        images = call(pipe, None, prompt_embeds=embeds)
    assert np.isfinite(told.score)
    assert not images.any()
    assert (
        guarding.verdicts[0].reason
        == "could not tell: bright-ending needs the caption in words, and the call gave none; give it as `prompt`; "
        "withheld"
    )


def test_what_changed_after_the_guard_was_made_is_unknown(pipe, calibration):
    with guard(pipe, calibration, fpr=0.5, unknown="allow") as guarding:
        with torch.no_grad():
            next(pipe.unet.parameters()).mul_(1.5)
        assert call(pipe).any()
        assert "weights.unet is" in guarding.verdicts[0].reason
        pipe.unet = stable_diffusion().unet
        call(pipe)
        assert "the pipeline's unet was replaced" in guarding.verdicts[0].reason


def test_an_unknown_call_withholds_in_every_form(pipe, calibration):
    for output_type in ("pil", "pt", "latent"):
        with guard(pipe, calibration, fpr=0.5, unknown="block"):
            (image,) = call(pipe, output_type=output_type, num_inference_steps=1)
        black = black_latents(pipe, image, {}) if output_type == "latent" else np.zeros_like(np.asarray(image))
        assert np.array_equal(np.asarray(image), np.asarray(black))


def test_what_diffusers_refuses_is_raised(pipe, calibration):
    with guard(pipe, calibration, fpr=0.5, unknown="block") as guarding:
        call(pipe)
        for wrong, error in [
            ({"height": 12, "width": 12}, ValueError),
            ({"num_inference_steps": "three"}, TypeError),
            ({"prompt": 7}, ValueError),
        ]:
            with pytest.raises(error):
                pipe(**{"prompt": "a red circle", **CALL, **wrong})
            assert guarding.verdicts == ()
    with pytest.raises(UsageError, match="got unknown='perhaps'; give 'raise', 'allow' or 'block'"):
        guard(pipe, calibration, fpr=0.5, unknown="perhaps")


def test_a_pipeline_with_another_scheduler_under_a_rule(pipe, calibration):
    """The rule also holds if no call can fit."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UsageError, match="scheduler is EulerDiscreteScheduler"):
        guard(pipe, calibration, fpr=0.5)
    with guard(pipe, flagging(calibration, EVERYTHING), unknown="block") as guarding:
        assert not call(pipe).any()
    assert "scheduler is EulerDiscreteScheduler" in guarding.verdicts[0].reason


def test_a_guard_warns_once_of_prompts_that_are_unlike_the_references(caplog):
    pipe = stable_diffusion()
    calibration = calibrate(pipe, PROMPTS, batch_size=51, **CALL)
    caplog.clear()
    with guard(pipe, calibration, fpr=0.5):
        for _ in range(3):
            pipe(["the wide green ground in the half of a small white arch " * 2] * 8, **CALL, output_type="latent")
        assert not caplog.records, "one prompt says little, however often it comes"
        for start in range(0, 24, 8):
            texts = [f"the wide green ground in the half of a small white arch number {start + n}" for n in range(8)]
            pipe(texts, **CALL, output_type="latent")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "references" in warnings[0]
