from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import BatchFeature

from cryptomnesia import Block, Drift, Mitigate, Policy, Regenerate, UsageError, guard
from cryptomnesia.guarding.black import black_latents
from cryptomnesia.guarding.policies import POLICIES, Escalate, policy_of
from cryptomnesia.mitigations import Mitigation, PartialCaptions, Remade
from guarded_calls import ALWAYS, NEVER, another, call
from nulls import EVERYTHING, by_norms, flagging


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_block_withholds_flagged_images_only(pipe, calibration, scores, output_type, return_dict):
    worst = int(np.argmax(scores))

    def images():
        output = pipe(
            ["a red circle"] * 8,
            generator=[torch.Generator().manual_seed(seed) for seed in range(8)],
            num_inference_steps=3,
            guidance_scale=2.0,
            output_type=output_type,
            return_dict=return_dict,
        )
        return [np.asarray(image) for image in (output.images if return_dict else output[0])]

    plain = images()
    strict = flagging(calibration, np.mean(sorted(scores)[-2:]))
    with guard(pipe, strict, policy="block") as guarding:
        blocked = images()
    assert [verdict.action for verdict in guarding.verdicts] == ["withheld" if i == worst else "none" for i in range(8)]
    assert "p = 0.01 ≤ 0.01; withheld" in guarding.verdicts[worst].reason
    black = np.zeros_like(plain[0])
    if output_type == "latent":
        black = black_latents(pipe, torch.tensor(plain[0]), {}).numpy()
    for index, (image, before) in enumerate(zip(blocked, plain, strict=True)):
        assert image.shape == before.shape
        assert np.array_equal(image, black if index == worst else before)


def test_mitigate_corrects_flagged_images_while_they_are_made(pipe, calibration):
    plain = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    with guard(pipe, **by_norms(calibration), policy="mitigate", fpr=0.5, mitigation=ALWAYS) as guarding:
        corrected = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
        first = guarding.verdicts
    # what is flagged still, by a detector that does not look at norms, is not shown
    strict = flagging(calibration, EVERYTHING, Drift())
    with guard(pipe, strict, detector="drift", policy="mitigate", mitigation=ALWAYS) as guarding:
        assert not call(pipe).any()
    assert guarding.verdicts[0].corrected == (0, 1, 2)
    assert "still flagged after correction; withheld" in guarding.verdicts[0].reason
    assert not np.array_equal(corrected, plain)
    assert [verdict.action for verdict in first] == ["mitigated"] * 2
    assert all(verdict.severity == "strong" and verdict.corrected == (0, 1, 2) for verdict in first)
    # a rule that never acts: what is flagged is withheld, what is not is left alone
    with guard(pipe, calibration, detector="drift", policy="mitigate", fpr=0.5, mitigation=NEVER) as guarding:
        images = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
    assert {verdict.action for verdict in guarding.verdicts} == {"none", "withheld"}
    every = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
    for image, before, verdict in zip(images, every, guarding.verdicts, strict=True):
        assert verdict.action == ("withheld" if verdict.flagged else "none")
        assert np.array_equal(image, np.zeros_like(before) if verdict.flagged else before)


def test_the_score_under_mitigation_is_that_of_the_proposed_updates(pipe, calibration):
    """At a single evaluation the correction cannot have changed what the solver proposes."""
    settings = {"fpr": 0.5, "decide_by": 1, "detector": "stability"}
    with guard(pipe, calibration, **settings) as observing:
        call(pipe)
    with guard(pipe, calibration, policy="mitigate", mitigation=ALWAYS, **settings) as mitigating:
        call(pipe)
    assert mitigating.verdicts[0].score == pytest.approx(observing.verdicts[0].score, rel=1e-4)
    assert mitigating.verdicts[0].score > 0


def test_regenerate_takes_the_first_seed_that_is_clean(pipe, calibration, scores):
    best, worst = int(np.argmin(scores)), int(np.argmax(scores))
    plain = call(pipe, seeds=(best, worst), prompt=["a red circle"] * 2)
    others, found = [], []
    for attempt in range(1, 11):
        with guard(pipe, calibration, fpr=0.5) as observing:
            others.append(call(pipe, generator=another(seeds=(best, worst), row=1, attempt=attempt)))
        found.append(observing.verdicts[0].score)
    threshold = (max(min(found), scores[best]) + scores[worst]) / 2
    assert threshold < scores[worst]
    first = next(number for number, score in enumerate(found) if score < threshold)
    with guard(pipe, flagging(calibration, threshold), policy=Regenerate(retries=10)) as guarding:
        images = call(pipe, seeds=(best, worst), prompt=["a red circle"] * 2)
    kept, made = guarding.verdicts
    assert (kept.action, made.action) == ("none", "regenerated")
    assert made.flagged
    assert made.retried == (*[0.01] * first, 1.0)
    np.testing.assert_array_equal(images[0], plain[0])
    np.testing.assert_allclose(images[1], others[first][0], atol=1e-5)


def test_regenerate_gives_up_after_its_retries_and_mitigates(pipe, calibration):
    strict = by_norms(calibration)
    with guard(pipe, **strict, policy=Regenerate(retries=2), mitigation=ALWAYS) as guarding:
        call(pipe)
    (verdict,) = guarding.verdicts
    assert verdict.action == "mitigated"
    assert verdict.retried == (0.01, 0.01)
    assert verdict.corrected == (0, 1, 2)
    with guard(pipe, **strict, policy=Regenerate(retries=2), mitigation=NEVER) as guarding:
        image = call(pipe)
    assert guarding.verdicts[0].action == "withheld"
    assert not image.any()


@pytest.mark.parametrize(("output_type", "tolerance"), [("pil", 1.0), ("latent", 1e-3)])
def test_images_of_one_call_are_made_again_alone(pipe, calibration, output_type, tolerance):
    """Several prompts and several images per prompt: row 3 is the second image of the second prompt."""
    strict = by_norms(calibration)
    with guard(pipe, **strict, policy=Regenerate(retries=1), mitigation=ALWAYS) as guarding:
        images = call(
            pipe,
            ["a red circle", "a blue star"],
            seeds=range(4),
            num_images_per_prompt=2,
            output_type=output_type,
            latents=None,
        )
    assert len(images) == len(guarding.verdicts) == 4
    assert np.asarray(images[3]).any()
    with guard(pipe, **strict, policy="mitigate", mitigation=ALWAYS):
        again = call(pipe, "a blue star", generator=another(range(4), 3), output_type=output_type)
    np.testing.assert_allclose(np.asarray(images[3], dtype=float), np.asarray(again[0], dtype=float), atol=tolerance)


@pytest.mark.parametrize("policy", ["observe", "mitigate", "block", "regenerate", "escalate"])
def test_latents_that_are_not_finite_are_never_called_clean(pipe, calibration, policy):
    def spoil(pipe, index, t, values):
        if index == 1:
            values["latents"] = values["latents"] * torch.nan
        return values

    with guard(pipe, calibration, policy=policy, fpr=0.5) as guarding:
        images = call(pipe, callback_on_step_end=spoil, output_type="latent")
    (verdict,) = guarding.verdicts
    assert not verdict.clean
    assert not verdict.flagged
    assert np.isnan(verdict.p_value)
    assert "could not tell: the latents are not finite from evaluation 2 on" in verdict.reason
    if policy == "observe":
        assert verdict.action == "none"
    else:
        assert verdict.action == "withheld"
        assert torch.equal(images[0], black_latents(pipe, images[0], {}))


@pytest.mark.parametrize("policy", ["mitigate", "regenerate", "escalate", "block"])
def test_an_interrupted_call_computes_nothing_more(pipe, calibration, policy):
    calls = []

    def stop(pipe, index, t, values):
        calls.append(index)
        pipe._interrupt = True
        return values

    with guard(pipe, calibration, fpr=0.5, policy=policy) as guarding:
        call(pipe, callback_on_step_end=stop)
    assert calls == [0]
    assert guarding.verdicts[0].action == "withheld"
    assert "the call was interrupted" in guarding.verdicts[0].reason


class SafetyChecker:
    """Also its own feature extractor: flags all images of the first call and none of the later ones."""

    def __init__(self):
        self.calls = 0

    def __call__(self, pictures=None, return_tensors=None, images=None, clip_input=None):
        if pictures is not None:
            return BatchFeature({"pixel_values": torch.zeros(len(pictures), 1)})
        self.calls += 1
        return images, [self.calls == 1] * len(images)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("policy", [Regenerate(retries=12), Mitigate(), Block()])
def test_a_safety_flag_is_that_of_the_image_that_is_returned(pipe, calibration, scores, policy, return_dict):
    best, worst = int(np.argmin(scores)), int(np.argmax(scores))
    pipe.safety_checker = pipe.feature_extractor = SafetyChecker()
    with guard(pipe, flagging(calibration, np.mean(sorted(scores)[-2:])), policy=policy) as guarding:
        output = pipe(
            ["a red circle"] * 2,
            generator=[torch.Generator().manual_seed(seed) for seed in (best, worst)],
            num_inference_steps=3,
            guidance_scale=2.0,
            output_type="np",
            return_dict=return_dict,
        )
    flags = output.nsfw_content_detected if return_dict else output[1]
    assert guarding.verdicts[0].action == "none"
    # what is withheld was never looked at again
    assert flags == [True, guarding.verdicts[1].action == "withheld"]
    assert flags[1] or policy.name != "block"
    assert not flags[1] or policy.name != "regenerate"


def test_a_broken_image_is_not_mended_by_an_earlier_correction(pipe, calibration):
    def spoil(pipe, index, t, values):
        if index == 1:
            values["latents"] = values["latents"] * torch.nan
        return values

    for policy in ("mitigate", Regenerate(retries=1)):
        with guard(pipe, calibration, fpr=0.5, mitigation=ALWAYS, policy=policy) as guarding:
            image = call(pipe, callback_on_step_end=spoil)
        (verdict,) = guarding.verdicts
        assert verdict.corrected == (0, 1)
        assert verdict.action == "withheld"
        assert "could not tell" in verdict.reason
        assert not image.any()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_image_does_not_spoil_its_neighbour_under_a_rule(pipe, calibration, broken):
    def spoil(pipe, index, t, values):
        if index == 0:
            values["latents"][0] = broken
        return values

    with guard(pipe, calibration, policy="mitigate", fpr=0.5, mitigation=ALWAYS) as guarding:
        images = call(pipe, ["a red circle"] * 2, seeds=(0, 1), callback_on_step_end=spoil, output_type="latent")
    bad, good = guarding.verdicts
    assert not bad.clean
    assert good.corrected == (0, 1, 2)
    assert torch.isfinite(images[1]).all()


@pytest.mark.parametrize("policy", ["block", Block, Block()])
def test_a_policy_is_given_by_name_class_or_object(pipe, calibration, policy):
    with guard(pipe, flagging(calibration, EVERYTHING), policy=policy) as guarding:
        assert not call(pipe).any()
    assert guarding.policy == Block()
    assert guarding.verdicts[0].action == "withheld"


def test_every_policy_has_a_name():
    assert {name: policy_of(name).name for name in POLICIES} == {name: name for name in POLICIES}
    assert list(POLICIES) == ["observe", "block", "mitigate", "regenerate", "escalate"]
    assert policy_of("regenerate") == Regenerate(retries=3)


def test_what_is_no_policy_is_refused(pipe, calibration):
    with pytest.raises(UsageError, match="got 0 retries; give at least 1"):
        Regenerate(retries=0)
    with pytest.raises(
        UsageError, match=r"got 7 as policy, which lacks name, acts, .*settle, cost; give observe, block"
    ):
        guard(pipe, calibration, policy=7, fpr=0.5)


@dataclass(frozen=True)
class Second(Policy):
    """A third party's policy: return the image of the second other seed, whatever its score is."""

    name = "second"

    def settle(self, images, studio, mitigation):
        assert mitigation is None
        settled = []
        for image in images:
            output, (again,) = studio.make([image.other(2)])
            settled.append(
                Remade(replace(image.flagged.verdict, action="regenerated", retried=(again.p_value,)), output)
            )
        return settled


def test_a_third_partys_policy_decides(pipe, calibration):
    plain = call(pipe, generator=another([0, 1], row=1, attempt=2))
    with guard(pipe, flagging(calibration, EVERYTHING), policy=Second()) as guarding:
        images = call(pipe, ["a red circle"] * 2, seeds=(0, 1))
    np.testing.assert_allclose(images[1], plain[0], atol=1e-5)
    assert [(verdict.action, verdict.retried) for verdict in guarding.verdicts] == [("regenerated", (0.01,))] * 2


@dataclass(frozen=True)
class Whiten(Mitigation):
    """A third party's mitigation: the same call with another prompt."""

    prompt: str = "a white star"

    name = "whiten"

    def remake(self, flagged, studio):
        output, verdicts = studio.make([{**image.call, "prompt": [self.prompt]} for image in flagged])
        made = zip(flagged, verdicts, strict=True)
        return [
            Remade(replace(image.verdict, action="mitigated", reason=f"now p = {verdict.p_value}"), output, place)
            for place, (image, verdict) in enumerate(made)
        ]


@pytest.mark.parametrize("mitigation", [Whiten, Whiten()])
def test_a_third_partys_mitigation_makes_images_again(pipe, calibration, mitigation):
    plain = call(pipe, ["a white star"] * 2, seeds=(0, 1))
    with guard(pipe, flagging(calibration, EVERYTHING), policy="mitigate", mitigation=mitigation) as guarding:
        images = call(pipe, ["a red circle", "a blue star"], seeds=(0, 1))
    assert guarding.mitigation == Whiten()
    np.testing.assert_allclose(images, plain, atol=1e-5)
    assert [verdict.action for verdict in guarding.verdicts] == ["mitigated"] * 2


def test_a_policy_that_needs_no_mitigation_asks_for_none(pipe, calibration):
    """Also where no mitigation could work."""
    for policy in ("observe", "block", Second()):
        assert guard(pipe, calibration, policy=policy, mitigation="tarot", fpr=0.5).mitigation is None
    with pytest.raises(UsageError, match="unknown mitigation 'tarot'"):
        guard(pipe, calibration, policy="mitigate", mitigation="tarot", fpr=0.5)


@dataclass(frozen=True)
class Scripted(Mitigation):
    """Makes the image again and says by its number of steps whether that helped."""

    clean_at: int
    at: int = 0

    name = "scripted"

    @property
    def stronger(self):
        return None if self.at else replace(self, at=1)

    def remake(self, flagged, studio):
        output, _ = studio.make([image.call for image in flagged])
        seeds = [image.call["generator"].initial_seed() for image in flagged]
        taken = self.at if self.at or seeds[0] < 2**20 else 2
        answers = []
        for place, image in enumerate(flagged):
            verdict = replace(image.verdict, reason=f"{image.verdict.reason}; step {taken}")
            if taken == self.clean_at:
                answers.append(Remade(replace(verdict, action="mitigated"), output, place))
            else:
                reason = f"{verdict.reason}; withheld"
                answers.append(Remade(replace(verdict, action="withheld", reason=reason)))
        return answers


@pytest.mark.parametrize(
    ("clean_at", "ending"),
    [
        (0, "; step 0"),
        (1, "; step 0; a stronger setting; step 1"),
        (2, "; step 0; a stronger setting; step 1; another seed; step 2"),
        (3, "; step 0; a stronger setting; step 1; another seed; step 2; withheld"),
    ],
)
def test_escalate_takes_one_step_after_the_other(pipe, calibration, clean_at, ending):
    strict = flagging(calibration, EVERYTHING)
    with guard(pipe, strict, policy="escalate", mitigation=Scripted(clean_at)) as guarding:
        images = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    assert [verdict.action for verdict in guarding.verdicts] == ["withheld" if clean_at == 3 else "mitigated"] * 2
    assert all(verdict.reason.endswith(ending) for verdict in guarding.verdicts)
    assert (np.abs(images).max() > 0) == (clean_at < 3)


def test_escalate_leaves_words_out_only_if_that_is_allowed(pipe, calibration):
    strict = flagging(calibration, EVERYTHING)
    for rephrase in (False, True):
        with guard(pipe, strict, policy=Escalate(rephrase=rephrase), mitigation=Scripted(9)) as guarding:
            call(pipe, seeds=(0,), prompt=["a red circle"])
        (verdict,) = guarding.verdicts
        assert verdict.action == "withheld"
        assert ("fewer words" in verdict.reason) == rephrase
        assert bool(verdict.dropped) == rephrase


def test_the_default_mitigation_has_one_stronger_setting():
    first = PartialCaptions()
    assert first.stronger.usual > first.usual
    assert first.stronger.stronger is None
