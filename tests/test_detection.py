import math
from functools import wraps

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, LCMScheduler

import cryptomnesia
from cryptomnesia import (
    Collapse,
    Curvature,
    CurvatureDifference,
    EarlyDetail,
    Finding,
    Located,
    MapMean,
    Rephrasing,
    SettledDetail,
    Stability,
    StabilityRule,
    UsageError,
    Verdict,
    calibrate,
    detect,
    load_pipeline,
    vouch,
)
from cryptomnesia.detection import Examination
from cryptomnesia.localizers import DiagonalEstimator
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion, unconditional
from cryptomnesia.tracing.generation import generate
from family_cases import CASES
from guarded_calls import ALWAYS
from mapped_runs import CHEAP
from nulls import EVERYTHING, flagging
from runs import LONG

TWO = ["a blue star", "a green ring"]


def test_findings_agree_with_the_parts(pipe, calibration):
    prompts, seeds = ["a blue star", "a green ring", "a blue star"], [5, 6, 7]
    given = {"seeds": seeds, "calibration": calibration, "fpr": 0.5, "batch_size": 2}
    findings = list(detect(pipe, prompts, **given, **CALL))
    assert [(finding.prompt, finding.seed) for finding in findings] == list(zip(prompts, seeds, strict=True))
    (batch,) = generate(Setup.of(pipe, CALL), prompts, seeds)
    for finding, image in zip(findings, batch.images, strict=True):
        torch.testing.assert_close(finding.image, image, atol=1e-4, rtol=0)
        verdict = finding.verdict
        p = calibration.p_value(EarlyDetail(), torch.tensor([verdict.score])).item()
        assert verdict.p_value == pytest.approx(p)
        assert verdict.flagged == (p <= 0.5)
        assert verdict.flagged == (verdict.first_flagged_step is not None)
        assert verdict.prompt == finding.prompt
        assert finding.located is None
        assert finding.instead is None
        assert finding.trajectory.norms["z"].shape == (1, 3)


def test_flagged_images_get_a_map_and_another_picture(pipe, calibration):
    findings = list(
        detect(
            pipe,
            TWO,
            seeds=[5, 6],
            calibration=flagging(calibration, EVERYTHING, Stability()),
            detector="stability",
            localizer=CurvatureDifference(),
            mitigation=ALWAYS,
            **CALL,
        )
    )
    for finding in findings:
        assert finding.verdict.flagged
        assert finding.verdict.action == "mitigated"
        assert type(finding.located) is Located
        assert finding.located.maps["curvature-difference"].shape == (8, 8)
        assert finding.located.errors["curvature-difference"].shape == (8, 8)
        assert torch.equal(finding.located.image, finding.image)
        assert finding.instead.shape == finding.image.shape
        assert not torch.equal(finding.instead, finding.image)


def test_flagged_images_are_made_again_together_without_words(pipe, calibration):
    prompts = ["a blue star on a red ground", "a green ring"]
    # nothing that is made again is clean
    strict = flagging(calibration, EVERYTHING)
    for finding in detect(pipe, prompts, seeds=[5, 6], calibration=strict, mitigation=Rephrasing(most=2), **CALL):
        assert finding.instead is None
        assert finding.verdict.action == "withheld"
        assert len(finding.verdict.dropped) == 2


def test_latents_that_break_behind_the_detectors_look_are_not_called_clean(pipe, calibration):
    def spoil(pipe, index, t, values):
        values["latents"][0] *= torch.nan if index == 1 else 1.0
        return values

    called = type(pipe).__call__
    prompts = ["a blue star"] * 2

    class Spoiled(type(pipe)):
        @wraps(called)
        def __call__(self, *args, **kwargs):
            return called(self, *args, callback_on_step_end=spoil, **kwargs)

    Spoiled.__name__ = type(pipe).__name__
    Spoiled.cryptomnesia_fingerprint = type(pipe).__name__
    broken_pipe = stable_diffusion()
    broken_pipe.__class__ = Spoiled
    vouch(broken_pipe, "stable-diffusion")
    broken, sound = detect(
        broken_pipe, prompts, seeds=[5, 6], calibration=calibration, detector="guidance-first", fpr=0.5, **CALL
    )
    assert math.isnan(broken.verdict.p_value)
    assert not broken.verdict.flagged
    assert sound.verdict.p_value > 0


def untouchable():
    """A pipeline that must not be called."""
    pipe = stable_diffusion()
    pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("something was generated"))
    return pipe


def test_what_cannot_be_answered_is_refused_at_the_call(calibration):
    """`next` is never called: arguments are checked before the iterator is made."""
    pipe = untouchable()

    def refused(message, prompts="a", **settings):
        with pytest.raises(UsageError, match=message):
            detect(pipe, prompts, **{"calibration": calibration, "fpr": 0.5, **CALL, **settings})

    unguided = {"guidance_scale": 1.0}
    refused("unknown detector 'tarot'", detector="tarot")
    refused("unknown localizer 'tarot'", localizer="tarot")
    refused("unknown mitigation 'tarot'", mitigation="tarot")
    refused("guidance-mean needs the unconditional branch", detector="guidance-mean", **unguided)
    refused("curvature-difference needs the unconditional", localizer=CurvatureDifference(), **unguided)
    refused("needs a less-trained checkpoint", localizer="collapse-checkpoint")
    refused("got the evaluation -5 of a run of 3", localizer=Curvature(-5))
    refused(r"guidance is 3\.0, calibrated 2\.0", guidance_scale=3.0)
    refused("needs at least", fpr=1e-6)
    refused("give one between 0 and 1", fpr=0.0)
    refused("the calibration has not recorded collapse", detector="collapse")
    refused("takes no eta_scale; leave it out", eta_scale=1)
    refused("got prompt_embeds, which the library gives for every image", prompt_embeds=torch.zeros(1))
    refused("got height 32 and width None", height=32)
    refused("got 2000 steps, the model knows 1000 timesteps", num_inference_steps=2000)
    refused("got no prompts", [])
    refused(r"prompt 'a a a .*\.\.\.' has 62 tokens, the model takes 32; shorten it", "a " * 60, long="error")
    refused("got 2 seeds for 1 images", seeds=[1, 2])
    refused("got a batch size of 0", batch_size=0)
    refused("got prompts=None; give a text", None)
    refused("got seeds=3; give a list", seeds=3)
    refused(r"got batch_size=2\.5; give a whole number", batch_size=2.5)
    refused(r"got fpr='0\.1'; give a number", fpr="0.1")
    refused("got 7 as detector, which lacks name, .*give a registered name", detector=7)
    with pytest.raises(UsageError, match=r"there is no calibration\.safetensors beside the model; make one with"):
        detect(pipe, "a", **CALL)
    with pytest.raises(UsageError, match="unknown family"):
        detect(object(), "a", calibration=calibration)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    refused("cannot steer a LCMScheduler", mitigation=StabilityRule())
    refused("scheduler is LCMScheduler, calibrated DDIMScheduler")


def test_without_a_calibration_the_one_beside_the_model_is_used(calibration, tmp_path):
    folder = tmp_path / "model"
    stable_diffusion().save_pretrained(folder)
    calibration.save(folder / "calibration.safetensors")
    pipe = load_pipeline(str(folder))
    beside, given, by_file = (
        next(detect(pipe, "a blue star", fpr=0.5, **settings, **CALL)).verdict
        for settings in (
            {},
            {"calibration": calibration},
            {"calibration": str(folder / "calibration.safetensors")},
        )
    )
    assert beside == given == by_file
    assert type(beside) is Verdict


def test_a_prompt_may_be_a_text_and_made_several_times(pipe, calibration):
    found = list(detect(pipe, "a blue star", images_per_prompt=3, calibration=calibration, fpr=0.5, **CALL))
    assert [(finding.prompt, finding.seed) for finding in found] == [("a blue star", seed) for seed in range(3)]


@pytest.mark.parametrize("localizer", [None, "auto"])
@pytest.mark.parametrize("mitigation", [None, "auto"])
def test_no_option_changes_the_type_of_a_result(pipe, calibration, localizer, mitigation):
    strict = flagging(calibration, EVERYTHING)
    settings = {"localizer": localizer, "mitigation": mitigation, **CALL}
    found = list(detect(pipe, TWO, calibration=strict, **settings))
    assert {type(finding) for finding in found} == {Finding}
    assert {type(finding.verdict) for finding in found} == {Verdict}
    assert all((finding.located is None) == (localizer is None) for finding in found)
    # no other picture is clean under this calibration
    assert {finding.verdict.action for finding in found} == {"none" if mitigation is None else "withheld"}


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_examined_with_no_further_option(name):
    """Also without an unconditional branch, and without captions."""
    case = CASES[name]
    pipe = case.make()
    calibration = calibrate(pipe, PROMPTS, batch_size=34, **case.call)
    setup = case.setup(pipe)
    methods = Examination.of(setup, calibration, fpr=0.5, localizer="auto", mitigation="auto")
    expected = {
        "sd unguided": "settled-detail-empty",
        "sd3 unguided": "settled-detail-empty",
        "flux distilled": "settled-detail-empty",
        "ddim": "curvature",
        "ddpm": "curvature",
    }
    assert methods.localizer.name == expected.get(name, "settled-detail")
    assert methods.mitigation.name == ("partial-captions" if setup.family.conditional else "stability-published")
    assert methods.judge.detector.name == ("early-detail" if setup.family.conditional else "stability-or-drift")
    strict = flagging(calibration, EVERYTHING)
    found = list(detect(pipe, TWO, calibration=strict, localizer="auto", mitigation="auto", **case.call))
    assert [finding.prompt for finding in found] == TWO
    for finding in found:
        assert finding.verdict.flagged
        assert finding.located.maps[methods.localizer.name].isfinite().all()
        assert finding.verdict.action in ("mitigated", "withheld")
        assert (finding.instead is None) == (finding.verdict.action == "withheld")


def test_a_model_for_which_no_mitigation_works_is_examined_without_one(caplog):
    """DDPM usually clips its estimate: it cannot be steered, and it has no captions."""
    pipe = unconditional()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=True)
    call = {"num_inference_steps": 3}
    strict = flagging(calibrate(pipe, PROMPTS, batch_size=34, **call), EVERYTHING)
    (finding,) = detect(pipe, "any", calibration=strict, localizer="auto", mitigation="auto", **call)
    assert "no mitigation works in this set-up" in caplog.text
    assert finding.verdict.flagged
    assert (finding.verdict.action, finding.instead) == ("none", None)
    assert finding.located is not None
    # what the user asks for by name, and what a guard needs, is refused
    with pytest.raises(UsageError, match="cannot steer a DDIMScheduler with clip_sample=True"):
        detect(pipe, "any", calibration=strict, mitigation="stability-published", **call)
    with pytest.raises(
        UsageError,
        match="none of the mitigations partial-captions, rephrasing, stability-published works in this set-up",
    ):
        cryptomnesia.guard(pipe, strict, policy="mitigate")


def counting(monkeypatch, kind):
    """The numbers of images for which a map of this class is made from now on."""
    images = []
    make = kind.map

    def counted(localizer, watched):
        images.append(len(watched.trajectory))
        return make(localizer, watched)

    monkeypatch.setattr(kind, "map", counted)
    return images


@pytest.mark.parametrize(
    ("kind", "localizer"),
    [(SettledDetail, "auto"), (Collapse, "collapse"), (Curvature, "curvature"), (Curvature, Curvature())],
)
def test_a_map_that_served_as_detector_is_not_computed_again(pipe, monkeypatch, kind, localizer):
    name = kind().name
    calibration = calibrate(pipe, PROMPTS, detectors=[name], batch_size=34, **CALL)
    strict = flagging(calibration, EVERYTHING, MapMean(kind()))
    mapped = counting(monkeypatch, kind)
    evaluated = []
    hook = pipe.unet.register_forward_hook(lambda _module, _args, output: evaluated.append(len(output[0])))
    call = {"calibration": strict, "detector": name, **CALL}
    plain = list(detect(pipe, TWO, **call))
    without = sum(evaluated)
    evaluated.clear()
    found = list(detect(pipe, TWO, localizer=localizer, **call))
    hook.remove()
    assert mapped == [2, 2]
    assert sum(evaluated) == without
    for finding, before in zip(found, plain, strict=True):
        heat = finding.located.maps[name]
        assert torch.equal(heat, finding.trajectory.signals[name][0])
        assert torch.equal(heat, before.trajectory.signals[name][0])
        assert heat.any() == (kind is not Collapse)
        assert heat.double().mean().float().item() == pytest.approx(finding.verdict.score)


def test_another_map_than_that_of_the_detector_is_computed(pipe, monkeypatch):
    calibration = calibrate(pipe, PROMPTS, detectors=["curvature"], batch_size=34, **CALL)
    strict = flagging(calibration, EVERYTHING, MapMean(Curvature()))
    mapped = counting(monkeypatch, Curvature)
    other = Curvature(estimator=DiagonalEstimator(seed=1))
    (finding,) = detect(pipe, "a blue star", calibration=strict, detector="curvature", localizer=other, **CALL)
    assert mapped == [1, 1]
    assert not torch.equal(finding.located.maps["curvature"], finding.trajectory.signals["curvature"][0])


def test_only_flagged_images_are_mapped(pipe, calibration, monkeypatch):
    scores = [finding.verdict.score for finding in detect(pipe, TWO, calibration=calibration, fpr=0.5, **CALL)]
    strict = flagging(calibration, sum(scores) / 2)
    mapped = counting(monkeypatch, Collapse)
    found = list(detect(pipe, TWO, calibration=strict, localizer=Collapse(estimator=CHEAP), **CALL))
    assert mapped == [1]
    assert [finding.located is not None for finding in found] == [score == max(scores) for score in scores]


def test_a_map_that_is_not_finite_does_not_end_the_detection(pipe, calibration, monkeypatch):
    """One of two flagged images gets no map; the other one's is as it would be."""
    strict = flagging(calibration, EVERYTHING)
    call = {"calibration": strict, "localizer": Curvature(estimator=CHEAP), **CALL}
    sound = list(detect(pipe, TWO, **call))
    make = Curvature.map

    def broken(localizer, watched):
        if "a blue star" in watched.prompts:
            raise cryptomnesia.errors.NotFiniteError("the model's output is not finite")
        return make(localizer, watched)

    monkeypatch.setattr(Curvature, "map", broken)
    first, second = detect(pipe, TWO, **call)
    assert first.located.maps["curvature"].isnan().all()
    torch.testing.assert_close(
        second.located.maps["curvature"], sound[1].located.maps["curvature"], rtol=1e-3, atol=1e-3
    )


def test_images_depend_on_their_seed_not_on_their_batch(pipe):
    setup = Setup.of(pipe, CALL)
    together = next(generate(setup, ["a blue star"] * 3, [1, 2, 1])).images
    alone = next(generate(setup, ["a blue star"], [2])).images
    torch.testing.assert_close(together[0], together[2])
    torch.testing.assert_close(together[1], alone[0], atol=1e-4, rtol=0)
    assert not torch.allclose(together[0], together[1])


def test_trajectories_do_not_need_pictures(pipe, monkeypatch):
    setup = Setup.of(pipe, CALL)
    (batch,) = generate(setup, ["a blue star"], [2])
    monkeypatch.setattr(pipe.vae, "decode", None)
    (quick,) = generate(setup, ["a blue star"], [2], decode=False)
    assert torch.equal(quick.trajectory.norms["delta"], batch.trajectory.norms["delta"])
    assert torch.equal(quick.images, batch.trajectory.latents)


def test_an_option_that_the_pipeline_does_not_know_is_refused():
    with pytest.raises(UsageError, match="a DDIMPipeline takes no negative_prompt; leave it out"):
        Setup.of(unconditional(DDIMPipeline), {"negative_prompt": "blurry"})


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_pipeline_that_is_changed_meanwhile_is_not_judged_by_the_old_calibration(calibration, drawn):
    def begun(pipe):
        found = detect(
            pipe, ["a blue star"] * 2, calibration=calibration, detector="drift", fpr=0.5, batch_size=1, **CALL
        )
        assert len([next(found) for _ in range(drawn)]) == drawn
        return found

    pipe = stable_diffusion()
    found = begun(pipe)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UsageError, match="scheduler is LCMScheduler, calibrated DDIMScheduler"):
        next(found)
    pipe = stable_diffusion()
    found = begun(pipe)
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.5)
    with pytest.raises(UsageError, match=r"weights\.unet is"):
        next(found)


def test_a_pipeline_may_be_changed_after_the_last_image(calibration):
    pipe = stable_diffusion()
    found = detect(pipe, ["a blue star"] * 2, calibration=calibration, fpr=0.5, **CALL)
    assert len([next(found) for _ in range(2)]) == 2
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    assert list(found) == []


def test_prompts_and_scores_unlike_the_references_are_told(pipe, calibration, caplog):
    list(detect(pipe, ["a blue star", "a green ring"], calibration=calibration, fpr=0.1, **CALL))
    assert caplog.messages == []
    findings = detect(pipe, [*LONG, "A red circle 7!"], calibration=calibration, fpr=0.1, batch_size=26, **CALL)
    overlap, length, vocabulary = caplog.messages
    assert overlap.startswith("1 of 26 prompts are references of the calibration, so their p-values do not hold")
    assert length.startswith("the prompts have 14 words at the median and the references 4")
    assert "of the words of a prompt are in no reference" in vocabulary
    caplog.clear()
    assert len(list(findings)) == 26
    caplog.clear()
    everything = flagging(calibration, EVERYTHING)
    list(detect(pipe, LONG, calibration=everything, fpr=0.1, batch_size=25, **CALL))
    assert caplog.messages[-1].startswith("the p-values of 25 prompts are 0.01 at the median")
