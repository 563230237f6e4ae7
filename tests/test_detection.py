from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

from cryptomnesia import (
    CurvatureDifference,
    Rephrasing,
    Sampling,
    StabilityRule,
    UsageError,
    examine,
    generate,
)
from cryptomnesia.testing.miniatures import SAMPLING, unconditional


def test_findings_agree_with_the_parts(pipe, calibration):
    prompts, seeds = ["a blue star", "a green ring", "a blue star"], [5, 6, 7]
    findings = list(examine(pipe, prompts, seeds, SAMPLING, calibration, rate=0.5, batch_size=2))
    assert [(f.prompt, f.seed) for f in findings] == list(zip(prompts, seeds, strict=True))
    (batch,) = generate(pipe, prompts, seeds, SAMPLING)
    for finding, image in zip(findings, batch.images, strict=True):
        torch.testing.assert_close(finding.image, image, atol=1e-4, rtol=0)
        p = calibration.p_value("drift", torch.tensor([finding.score])).item()
        assert finding.p_value == pytest.approx(p)
        assert finding.flagged == (p <= 0.5)
        assert finding.flagged == (finding.crossed is not None)
        assert finding.map is None
        assert finding.instead is None


def test_flagged_images_get_a_map_and_another_picture(pipe, calibration):
    # a null that every score exceeds
    strict = replace(calibration, null={"stability": torch.full((99, 3), -1.0)})
    rule = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
    look = {"localizer": CurvatureDifference(), "rule": rule, "detector": "stability"}
    findings = list(examine(pipe, ["a blue star", "a green ring"], [5, 6], SAMPLING, strict, **look))
    for finding in findings:
        assert finding.flagged
        assert finding.map.shape == (8, 8)
        assert finding.instead.shape == finding.image.shape
        assert not torch.equal(finding.instead, finding.image)


def test_flagged_images_are_made_again_together_without_words(pipe, calibration):
    prompts = ["a blue star on a red ground", "a green ring"]
    # nothing that is made again is clean
    strict = replace(calibration, null={"drift": torch.full((99, 3), -1.0)})
    for finding in examine(pipe, prompts, [5, 6], SAMPLING, strict, rule=Rephrasing(most=2)):
        assert finding.instead is None
        assert finding.remedy.action == "withheld"
        assert len(finding.remedy.dropped) == 2


def test_latents_that_break_behind_the_detectors_look_are_not_called_clean(pipe, calibration):
    def spoil(pipe, index, t, values):
        values["latents"][0] *= torch.nan if index == 1 else 1.0
        return values

    spoiled = Sampling(3, 2.0, options={"callback_on_step_end": spoil})
    broken, sound = examine(
        pipe, ["a blue star"] * 2, [5, 6], spoiled, calibration, detector="guidance-first", rate=0.5
    )
    assert np.isnan(broken.p_value)
    assert not broken.flagged
    assert sound.p_value > 0


def test_images_depend_on_their_seed_not_on_their_batch(pipe):
    together = next(generate(pipe, ["a blue star"] * 3, [1, 2, 1], SAMPLING)).images
    alone = next(generate(pipe, ["a blue star"], [2], SAMPLING)).images
    torch.testing.assert_close(together[0], together[2])
    torch.testing.assert_close(together[1], alone[0], atol=1e-4, rtol=0)
    assert not torch.allclose(together[0], together[1])


def test_what_cannot_be_answered_is_refused_before_anything_is_generated(pipe, calibration):
    class Untouchable:
        """Stands for a pipeline that must not be called."""

        tokenizer, unet, scheduler, components = pipe.tokenizer, pipe.unet, pipe.scheduler, pipe.components
        vae_scale_factor = pipe.vae_scale_factor

    Untouchable.__name__ = "StableDiffusionPipeline"

    def refused(message, sampling=SAMPLING, **settings):
        with pytest.raises(UsageError, match=message):
            next(examine(Untouchable(), ["a"], [0], sampling, calibration, **{"rate": 0.5, **settings}))

    refused("unknown detector", detector="tarot")
    refused("guidance-mean needs the unconditional branch", Sampling(3, 1.0), detector="guidance-mean")
    refused("curvature-difference needs", Sampling(3, 1.0), localizer=CurvatureDifference())
    refused(r"guidance is 3\.0, calibrated 2\.0", Sampling(3, 3.0))
    refused("needs at least", rate=1e-6)
    refused("give one between 0 and 1", rate=0.0)
    Untouchable.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    refused("cannot steer a LCMScheduler", rule=StabilityRule())


def test_trajectories_do_not_need_pictures(pipe, monkeypatch):
    (batch,) = generate(pipe, ["a blue star"], [2], SAMPLING)
    monkeypatch.setattr(pipe.vae, "decode", None)
    (quick,) = generate(pipe, ["a blue star"], [2], SAMPLING, decode=False)
    assert torch.equal(quick.trajectory.norms.delta, batch.trajectory.norms.delta)
    assert torch.equal(quick.images, batch.trajectory.latents)


def test_a_prompt_that_would_be_cut_is_refused(pipe):
    with pytest.raises(UsageError, match=r"prompt 'a a a .*\.\.\.' has 62 tokens, the model takes 32; shorten it"):
        next(generate(pipe, ["a " * 60], [0], SAMPLING))


def test_an_option_that_the_pipeline_does_not_know_is_refused():
    pipe = unconditional()
    with pytest.raises(UsageError, match="a DDIMPipeline takes no negative_prompt; leave it out"):
        next(generate(pipe, [""], [0], Sampling(2, 1.0, options={"negative_prompt": "blurry"})))
