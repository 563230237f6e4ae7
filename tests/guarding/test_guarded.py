import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from cryptomnesia import (
    Drift,
    EarlyDetail,
    Guard,
    Regenerate,
    Sampling,
    UsageError,
    Verdict,
    calibrate,
    detect,
    guard,
    load_pipeline,
)
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.testing.miniatures import CALL, stable_diffusion
from guarded_calls import call
from nulls import EVERYTHING, flagging


def test_observing_changes_nothing_and_agrees_with_detect(pipe, calibration, scores):
    plain = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
    heard = []
    with guard(pipe, calibration, fpr=0.5, on_verdict=heard.append) as guarding:
        watched = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
        assert isinstance(pipe, StableDiffusionPipeline)
        assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert np.array_equal(watched, plain)
    assert [verdict.score for verdict in guarding.verdicts] == pytest.approx(scores, rel=1e-3)
    assert list(guarding.verdicts) == heard
    for verdict in heard:
        p = calibration.p_value(EarlyDetail(), torch.tensor([verdict.score])).item()
        assert verdict.p_value == p
        assert verdict.flagged == (p <= 0.5)
        assert verdict.clean == (not verdict.flagged)
        assert (verdict.first_flagged_step is None) == verdict.clean
        assert verdict.action == "none"
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(call(pipe, seeds=range(8), prompt=["a red circle"] * 8), plain)
    assert len(guarding.verdicts) == 8


def test_an_interrupted_call_leaves_the_guard_working(pipe, calibration):
    def stop(pipe, index, t, values):
        raise KeyboardInterrupt

    plain = call(pipe)
    with guard(pipe, calibration, fpr=0.5) as guarding:
        with pytest.raises(KeyboardInterrupt):
            call(pipe, callback_on_step_end=stop)
        assert guarding.verdicts == ()
        assert np.array_equal(call(pipe), plain)
        assert len(guarding.verdicts) == 1
    assert not pipe.unet._forward_hooks
    assert "step" not in vars(pipe.scheduler)


def test_a_copy_of_a_guarded_pipeline_can_be_guarded_by_itself(pipe, calibration):
    with guard(pipe, calibration, fpr=0.5) as first:
        other = copy.copy(pipe)
        with guard(other, calibration, fpr=0.5) as second:
            call(other, "a blue star")
            assert (len(first.verdicts), len(second.verdicts)) == (0, 1)
            call(pipe)
        assert (len(first.verdicts), type(other)) == (1, StableDiffusionPipeline)


def test_attach_and_detach(pipe, calibration):
    guarding = Guard(pipe, calibration, fpr=0.5)
    call(pipe)
    assert guarding.verdicts == ()
    guarding.attach()
    with pytest.raises(UsageError, match="guarded already"):
        guarding.attach()
    with pytest.raises(UsageError, match="guarded already"), guard(pipe, calibration, fpr=0.5):
        pass
    with pytest.raises(UsageError, match="guarded already"), guarding:
        pass
    assert len(guarding.verdicts) == 0
    call(pipe)
    assert len(guarding.verdicts) == 1
    guarding.detach()
    guarding.detach()
    with guarding as same:
        assert same is guarding
        call(pipe)
    assert type(pipe) is StableDiffusionPipeline
    guarding.attach().detach()


def test_a_guard_bound_to_a_negative_prompt_wants_it(pipe, calibration):
    bound = replace(calibration, fingerprint={**calibration.fingerprint, "options": {"negative_prompt": "a blue star"}})
    with guard(pipe, bound, fpr=0.5) as guarding:
        call(pipe, ["a red circle"] * 2, seeds=(0, 1), negative_prompt=["a blue star"] * 2)
        assert len(guarding.verdicts) == 2
        with pytest.raises(UsageError, match=r"options\.negative_prompt is None, calibrated a blue star"):
            call(pipe)


def test_what_does_not_fit_is_explained(pipe, calibration):
    for settings, message in [
        ({"policy": "tarot"}, "unknown policy 'tarot'; known are observe, block, mitigate, regenerate"),
        ({"detector": "tarot"}, "unknown detector 'tarot'"),
        ({"fpr": 1.5}, "between 0 and 1"),
        ({"fpr": 0.01}, "needs at least 99 null references, the calibration has 68"),
        ({"decide_by": 4}, r"decide_by=4 of 3 evaluations; give one in 1 … 3"),
        ({"decide_by": 2.0}, r"got decide_by=2\.0; give a whole number"),
        ({"fpr": "0.1"}, r"got fpr='0\.1'; give a number"),
        ({"policy": "mitigate", "mitigation": "tarot"}, "unknown mitigation 'tarot'"),
    ]:
        with pytest.raises(UsageError, match=message):
            Guard(pipe, calibration, **{"fpr": 0.5, **settings})
    with guard(pipe, calibration, fpr=0.5):
        for settings, message in [
            ({"num_inference_steps": 4}, "steps is 4, calibrated 3"),
            ({"guidance_scale": 3.0}, r"guidance is 3\.0, calibrated 2\.0"),
            ({"height": 32}, "height is 32, calibrated None"),
            ({"guidance_rescale": 0.7}, r"options\.guidance_rescale is 0\.7, calibrated None"),
            ({"negative_prompt": ["a star"]}, r"options\.negative_prompt is a star, calibrated None"),
        ]:
            with pytest.raises(UsageError, match=message):
                call(pipe, **settings)
        call(pipe, height=16, width=16)
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(UsageError, match="scheduler is EulerDiscreteScheduler, calibrated DDIM"):
            call(pipe)
    other = stable_diffusion()
    with guard(other, calibration, fpr=0.5):
        other.unet = stable_diffusion().unet
        with pytest.raises(UsageError, match="pipeline's unet was replaced"):
            call(other)
    with torch.no_grad():
        next(other.unet.parameters()).mul_(1.5)
    with pytest.raises(UsageError, match=r"weights\.unet is"):
        Guard(other, calibration, fpr=0.5)


def test_a_calibration_can_be_bound_to_further_options(pipe):
    sampling = Sampling(2, 2.0, options={"negative_prompt": "a blue star"})
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "negative_prompt": "a blue star"}
    bound = calibrate(pipe, [f"a red circle {n}" for n in range(100)], batch_size=50, **options)
    assert bound.sampling == sampling
    with guard(pipe, bound, fpr=0.5) as guarding:
        call(pipe, negative_prompt="a blue star", num_inference_steps=2)
    assert guarding.verdicts[0].p_value > 0


def test_the_global_generator_and_the_pipelines_state_are_left_alone(pipe, calibration):
    always = flagging(calibration, EVERYTHING)
    for settings in (
        {"policy": Regenerate(retries=1)},
        {"policy": "mitigate"},
        {"policy": "block", "decide_by": 2},
    ):
        torch.manual_seed(0)
        with guard(pipe, always, **settings):
            pipe("a red circle", num_inference_steps=3, guidance_scale=2.0)
        assert torch.initial_seed() == 0
        assert pipe.interrupt is False


def test_verdicts_can_be_joined_to_requests(pipe, calibration):
    heard = []
    with guard(pipe, calibration, fpr=0.5, on_verdict=heard.append):
        call(pipe, ["a red circle", "a blue star"], seeds=range(4), num_images_per_prompt=2)
    assert [(verdict.image, verdict.prompt) for verdict in heard] == list(
        enumerate(["a red circle"] * 2 + ["a blue star"] * 2)
    )


def test_wrapped_networks_are_the_same_model(pipe, calibration):
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with guard(pipe, calibration, fpr=0.5) as guarding:
        call(pipe)
    assert len(guarding.verdicts) == 1


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ({"height": 16, "width": 16}, Sampling(3, 2.0)),
        ({}, Sampling(3, 2.0, 16, 16)),
        ({"negative_prompt": ""}, Sampling(3, 2.0)),
        ({"negative_prompt": ["a star"]}, Sampling(3, 2.0, options={"negative_prompt": "a star"})),
        ({"cross_attention_kwargs": None}, Sampling(3, 2.0)),
    ],
)
def test_settings_may_be_written_in_any_way(pipe, calibration, given, bound):
    again = replace(calibration, fingerprint=fingerprint(pipe, bound))
    with guard(pipe, again, fpr=0.5) as guarding:
        call(pipe, ["a red circle"], **{**given, "negative_prompt": _listed(given.get("negative_prompt"))})
    assert len(guarding.verdicts) == 1


def _listed(negative):
    return [negative] if isinstance(negative, str) else negative


@pytest.fixture(scope="module")
def saved(calibration, tmp_path_factory):
    """The folder of a model, with its calibration beside the weights."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    stable_diffusion().save_pretrained(folder)
    calibration.save(folder / "calibration.safetensors")
    return folder


def test_without_a_calibration_the_one_beside_the_model_is_used(saved, calibration):
    pipe = load_pipeline(str(saved))
    plain = call(pipe)
    with guard(pipe, fpr=0.5) as guarding:
        assert np.array_equal(call(pipe), plain)
    assert guarding.calibration.fingerprint == calibration.fingerprint
    with guard(pipe, saved / "calibration.safetensors", fpr=0.5) as again:
        call(pipe)
    assert again.verdicts == guarding.verdicts


def test_without_any_calibration_one_line_says_how_to_make_one(pipe, saved, tmp_path):
    with pytest.raises(UsageError, match=r"no calibration.safetensors beside the model; .*`cryptomnesia calibrate`"):
        guard(pipe)
    bare = tmp_path / "bare"
    stable_diffusion().save_pretrained(bare)
    with pytest.raises(UsageError, match=r"there is no calibration.safetensors beside the model") as refused:
        guard(load_pipeline(str(bare)))
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=r"no calibration file .*absent.safetensors; make one with"):
        guard(pipe, tmp_path / "absent.safetensors")


def test_a_detector_is_given_by_name_class_or_object(pipe, calibration):
    scores = []
    for detector in ("drift", Drift, Drift(), Drift(less=3.0)):
        with guard(pipe, calibration, detector=detector, fpr=0.5) as guarding:
            call(pipe)
        assert guarding.detector == Drift()
        scores.append(guarding.verdicts[0].score)
    assert len(set(scores)) == 1
    with guard(pipe, calibration, detector=Drift(less=1.0), fpr=0.5) as guarding:
        call(pipe)
    assert guarding.verdicts[0].score != scores[0]


def test_a_failed_call_takes_an_early_decision_back(pipe, calibration):
    """The pipeline is not left interrupted when a callback raises after all images were flagged."""

    def fail(pipe, index, t, values):
        if index == 1:
            raise RuntimeError("stop")
        return values

    flagged = flagging(calibration, EVERYTHING, Drift())
    with guard(pipe, flagged, policy="block", detector="drift", decide_by=2) as guarding:
        with pytest.raises(RuntimeError, match="stop"):
            call(pipe, callback_on_step_end=fail)
        assert pipe.interrupt is False
    assert guarding.verdicts == ()


def test_every_result_is_a_verdict(pipe, calibration, saved):
    with guard(pipe, calibration, fpr=0.5) as guarding:
        call(pipe)
    (finding,) = detect(pipe, "a red circle", calibration=calibration, fpr=0.5, **CALL)
    both = (*guarding.verdicts, finding.verdict)
    assert [type(verdict) for verdict in both] == [Verdict] * 2
    assert both[0].answer in ("memorized?", "ordinary")
    for name in ("image", "prompt", "detector", "fpr", "flagged", "action"):
        assert getattr(both[0], name) == getattr(both[1], name)
