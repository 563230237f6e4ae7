import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from torch._dynamo import eval_frame
from transformers import BatchFeature

from cryptomnesia import Calibration, Guard, Rephrasing, Sampling, StabilityRule, UsageError, examine, guard, watch
from cryptomnesia.guarding.calls import Noise
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.testing.oracles import FiniteSet
from cryptomnesia.testing.miniatures import PROMPTS, SAMPLING, KeywordEncoder, oracle_pipeline, stable_diffusion


def call(pipe, prompt="a red circle", seeds=(0,), **settings):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    usual = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np", "generator": generators}
    return pipe(prompt, **{**usual, **settings}).images


def flagging(calibration, wanted):
    """The calibration with a null that only images with a score of at least `wanted` pass at rate .01."""
    return replace(calibration, null={"drift": torch.full((99, 3), float(np.nextafter(np.float32(wanted), 0)))})


def by_norms(calibration):
    """Settings under which everything is flagged, and returned once it is corrected."""
    null = {"stability": torch.full((99, 3), -1.0)}
    return {"calibration": replace(calibration, null=null), "detector": "stability"}


@pytest.fixture
def pipe():
    return stable_diffusion()


@pytest.fixture(scope="module")
def scores(calibration):
    """Stability of seeds 0 … 7 of one caption."""
    found = examine(stable_diffusion(), ["a red circle"] * 8, range(8), SAMPLING, calibration, rate=0.5)
    return [finding.score for finding in found]


def another(seeds, row, attempt=1):
    """The generator with which a guard makes image `row` of a call again."""
    return Noise({"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}).other(row, attempt)[
        "generator"
    ]


EVERYTHING = -1.0
ALWAYS = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)


def test_observing_changes_nothing_and_agrees_with_examine(pipe, calibration, scores):
    plain = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
    heard = []
    with guard(pipe, calibration, rate=0.5, on_verdict=heard.append) as guarding:
        watched = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
        assert isinstance(pipe, StableDiffusionPipeline)
        assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert np.array_equal(watched, plain)
    assert [verdict.score for verdict in guarding.verdicts] == pytest.approx(scores, rel=1e-3)
    assert list(guarding.verdicts) == heard
    for verdict in heard:
        p = calibration.p_value("drift", torch.tensor([verdict.score])).item()
        assert verdict.p_value == p
        assert verdict.flagged == (p <= 0.5)
        assert verdict.clean == (not verdict.flagged)
        assert (verdict.crossed is None) == verdict.clean
        assert verdict.action == "none"
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(call(pipe, seeds=range(8), prompt=["a red circle"] * 8), plain)
    assert len(guarding.verdicts) == 8


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
    for index, (image, own) in enumerate(zip(blocked, plain, strict=True)):
        assert image.shape == own.shape
        assert np.array_equal(image, np.zeros_like(own) if index == worst else own)


def test_mitigate_corrects_flagged_images_while_they_are_made(pipe, calibration):
    plain = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    with guard(pipe, **by_norms(calibration), policy="mitigate", rate=0.5, rule=ALWAYS) as guarding:
        corrected = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
        first = guarding.verdicts
    # what is flagged still, by a detector that does not look at norms, is not shown
    with guard(pipe, flagging(calibration, EVERYTHING), policy="mitigate", rule=ALWAYS) as guarding:
        assert not call(pipe).any()
    assert guarding.verdicts[0].corrected == (0, 1, 2)
    assert "still flagged after correction; withheld" in guarding.verdicts[0].reason
    assert not np.array_equal(corrected, plain)
    assert [verdict.action for verdict in first] == ["mitigated"] * 2
    assert all(verdict.severity == "strong" and verdict.corrected == (0, 1, 2) for verdict in first)
    # a rule that never acts: what is flagged is withheld, what is not is left alone
    never = StabilityRule(tau_mild=1e9)
    with guard(pipe, calibration, policy="mitigate", rate=0.5, rule=never) as guarding:
        images = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
    assert {verdict.action for verdict in guarding.verdicts} == {"none", "withheld"}
    every = call(pipe, seeds=range(8), prompt=["a red circle"] * 8)
    for image, own, verdict in zip(images, every, guarding.verdicts, strict=True):
        assert verdict.action == ("withheld" if verdict.flagged else "none")
        assert np.array_equal(image, np.zeros_like(own) if verdict.flagged else own)


def test_the_score_under_mitigation_is_that_of_the_proposed_updates(pipe, calibration):
    """At a single evaluation the correction cannot have changed what the solver proposes."""
    settings = {"rate": 0.5, "decide_by": 1, "detector": "stability"}
    with guard(pipe, calibration, **settings) as observing:
        call(pipe)
    with guard(pipe, calibration, policy="mitigate", rule=ALWAYS, **settings) as mitigating:
        call(pipe)
    assert mitigating.verdicts[0].score == pytest.approx(observing.verdicts[0].score, rel=1e-4)
    assert mitigating.verdicts[0].score > 0


def test_regenerate_takes_another_seed(pipe, calibration, scores):
    best, worst = int(np.argmin(scores)), int(np.argmax(scores))
    plain = call(pipe, seeds=(best, worst), prompt=["a red circle"] * 2)
    with guard(pipe, calibration, rate=0.5) as observing:
        other = call(pipe, generator=another(seeds=(best, worst), row=1))
    strict = flagging(calibration, (observing.verdicts[0].score + scores[worst]) / 2)
    with guard(pipe, strict, policy="regenerate") as guarding:
        images = call(pipe, seeds=(best, worst), prompt=["a red circle"] * 2)
    kept, made = guarding.verdicts
    assert (kept.action, made.action) == ("none", "regenerated")
    assert made.flagged
    assert made.retried == (1.0,)
    np.testing.assert_array_equal(images[0], plain[0])
    np.testing.assert_allclose(images[1], other[0], atol=1e-5)


def test_regenerate_gives_up_after_its_retries_and_mitigates(pipe, calibration):
    strict = by_norms(calibration)
    with guard(pipe, **strict, policy="regenerate", retries=2, rule=ALWAYS) as guarding:
        call(pipe)
    (verdict,) = guarding.verdicts
    assert verdict.action == "mitigated"
    assert verdict.retried == (0.01, 0.01)
    assert verdict.corrected == (0, 1, 2)
    with guard(pipe, **strict, policy="regenerate", retries=2, rule=StabilityRule(tau_mild=1e9)) as guarding:
        image = call(pipe)
    assert guarding.verdicts[0].action == "withheld"
    assert not image.any()


@pytest.mark.parametrize(("output_type", "tolerance"), [("pil", 1.0), ("latent", 1e-3)])
def test_images_of_one_call_are_made_again_alone(pipe, calibration, output_type, tolerance):
    """Several prompts and several images per prompt: row 3 is the second image of the second prompt."""
    strict = by_norms(calibration)
    with guard(pipe, **strict, policy="regenerate", retries=1, rule=ALWAYS) as guarding:
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
    with guard(pipe, **strict, policy="mitigate", rule=ALWAYS):
        again = call(pipe, "a blue star", generator=another(range(4), 3), output_type=output_type)
    np.testing.assert_allclose(np.asarray(images[3], dtype=float), np.asarray(again[0], dtype=float), atol=tolerance)


def test_an_early_decision_saves_the_rest_of_the_run(pipe, calibration, scores):
    evaluated = []
    pipe.unet.register_forward_hook(lambda *_: evaluated.append(1))
    with guard(pipe, flagging(calibration, EVERYTHING), policy="block", decide_by=2) as guarding:
        image = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    assert len(evaluated) == 2
    assert not image.any()
    assert [verdict.action for verdict in guarding.verdicts] == ["withheld"] * 2
    assert all(verdict.crossed < 2 for verdict in guarding.verdicts)
    # one image is in order, so the run goes on
    evaluated.clear()
    plain = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    with guard(pipe, calibration, rate=0.5, decide_by=2) as observing:
        call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    evaluated.clear()
    early = [verdict.score for verdict in observing.verdicts]
    with guard(pipe, flagging(calibration, np.mean(early)), policy="block", decide_by=2) as guarding:
        images = call(pipe, seeds=(0, 1), prompt=["a red circle"] * 2)
    assert len(evaluated) == 3
    for row in range(2):
        assert np.array_equal(images[row], plain[row] if early[row] < np.mean(early) else np.zeros_like(plain[row]))


def test_early_scores_are_judged_against_the_null_of_the_same_evaluation(pipe, calibration):
    null = torch.tensor([1e9, -1.0, 1e9]).expand(99, 3)
    with guard(pipe, replace(calibration, null={"drift": null}), decide_by=2) as guarding:
        call(pipe)
    assert guarding.verdicts[0].p_value == 0.01
    with guard(pipe, replace(calibration, null={"drift": null})) as guarding:
        call(pipe)
    assert guarding.verdicts[0].p_value == 1.0


@pytest.mark.parametrize("policy", ["observe", "mitigate", "block", "regenerate"])
def test_latents_that_are_not_finite_are_never_called_clean(pipe, calibration, policy):
    def spoil(pipe, index, t, values):
        if index == 1:
            values["latents"] = values["latents"] * torch.nan
        return values

    with guard(pipe, calibration, policy=policy, rate=0.5) as guarding:
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
        assert not images.any()


def test_an_interrupted_call_leaves_the_guard_working(pipe, calibration):
    def stop(pipe, index, t, values):
        raise KeyboardInterrupt

    plain = call(pipe)
    with guard(pipe, calibration, rate=0.5) as guarding:
        with pytest.raises(KeyboardInterrupt):
            call(pipe, callback_on_step_end=stop)
        assert guarding.verdicts == ()
        assert np.array_equal(call(pipe), plain)
        assert len(guarding.verdicts) == 1
    assert not pipe.unet._forward_hooks
    assert "step" not in vars(pipe.scheduler)


def test_the_users_own_interruption_cannot_be_judged(pipe, calibration):
    def stop(pipe, index, t, values):
        pipe._interrupt = True
        return values

    with guard(pipe, calibration, rate=0.5) as guarding:
        call(pipe, callback_on_step_end=stop)
    assert "could not tell: the run ended after 1 of 3 evaluations" in guarding.verdicts[0].reason


@pytest.mark.parametrize("policy", ["mitigate", "regenerate", "block"])
def test_an_interrupted_call_computes_nothing_more(pipe, calibration, policy):
    calls = []

    def stop(pipe, index, t, values):
        calls.append(index)
        pipe._interrupt = True
        return values

    with guard(pipe, calibration, rate=0.5, policy=policy) as guarding:
        call(pipe, callback_on_step_end=stop)
    assert calls == [0]
    assert guarding.verdicts[0].action == "withheld"
    assert "the call was interrupted" in guarding.verdicts[0].reason


def test_a_copy_of_a_guarded_pipeline_can_be_guarded_by_itself(pipe, calibration):
    with guard(pipe, calibration, rate=0.5) as first:
        other = copy.copy(pipe)
        with guard(other, calibration, rate=0.5) as second:
            call(other, "a blue star")
            assert (len(first.verdicts), len(second.verdicts)) == (0, 1)
            call(pipe)
        assert (len(first.verdicts), type(other)) == (1, StableDiffusionPipeline)


def test_what_cannot_tell_so_early_is_refused(pipe, calibration):
    with pytest.raises(UsageError, match="drift needs 2 evaluations to tell anything, there are to be 1"):
        guard(pipe, calibration, rate=0.5, decide_by=1)


def test_two_pipelines_in_two_threads_do_not_see_each_other(calibration):
    """They even share their networks, and each has a scheduler of its own."""
    first = stable_diffusion()
    second = StableDiffusionPipeline(
        **{**first.components, "scheduler": DDIMScheduler.from_config(first.scheduler.config, clip_sample=False)},
        requires_safety_checker=False,
    )
    second.set_progress_bar_config(disable=True)
    prompts = {first: "a red circle", second: "a blue star"}
    alone = {}
    for pipe, prompt in prompts.items():
        with guard(pipe, calibration, rate=0.5) as guarding:
            call(pipe, prompt)
        alone[pipe] = guarding.verdicts[0].score
    found = {pipe: [] for pipe in prompts}

    def work(pipe):
        with guard(pipe, calibration, rate=0.5) as guarding:
            for _ in range(5):
                call(pipe, prompts[pipe])
                found[pipe].append(guarding.verdicts[0].score)

    threads = [threading.Thread(target=work, args=(pipe,)) for pipe in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pipe, scores in found.items():
        assert scores == pytest.approx([alone[pipe]] * 5, rel=1e-4)


@pytest.fixture(scope="module")
def memorizer():
    """(pipe, calibration, image): the word "ring" brings the image back, other captions give one of many others."""
    generator = torch.Generator().manual_seed(0)
    planted = 2.5 * torch.randn((1, 4, 4, 4), generator=generator)
    pipe = oracle_pipeline(FiniteSet((torch.randn((64, 4, 4, 4), generator=generator), planted)), channels=4)
    pipe.text_encoder = KeywordEncoder("ring")
    references = [f"a red circle {n}" for n in range(150)]
    calibration = Calibration.fit(pipe, references, Sampling(20, 1.01), detectors=["collapse"], batch_size=50)
    return pipe, calibration, planted


@pytest.mark.parametrize("policy", ["mitigate", "regenerate"])
@pytest.mark.parametrize(
    ("detector", "decide_by"), [("stability", None), ("stability", 5), ("collapse", None), ("collapse", 7)]
)
def test_rephrasing_drops_the_word_that_brings_the_memory_back(memorizer, policy, detector, decide_by):
    pipe, calibration, planted = memorizer
    prompts = ["a red circle and a ring on a blue ground", "a red circle"]

    def distances():
        generators = [torch.Generator().manual_seed(seed) for seed in (9, 10)]
        settings = {"num_inference_steps": 20, "guidance_scale": 1.01, "output_type": "latent"}
        return (pipe(prompts, generator=generators, **settings).images - planted).flatten(1).norm(dim=1)

    plain = distances()
    assert plain[0] < 0.5 < plain[1]
    with guard(pipe, calibration, policy=policy, detector=detector, retries=1, decide_by=decide_by) as guarding:
        guarded = distances()
    flagged, ordinary = guarding.verdicts
    assert flagged.dropped == ("ring",)
    assert flagged.action == "mitigated"
    assert "without ring p = " in flagged.reason
    assert ordinary.action == "none"
    assert guarded[0] > 10 * plain[0]
    assert guarded[1] == plain[1]


def test_a_map_decides_as_soon_as_there_is_one(memorizer):
    pipe, calibration, _ = memorizer
    steps = []

    def call(prompt, **more):
        steps.clear()
        pipe(
            prompt,
            generator=torch.Generator().manual_seed(9),
            num_inference_steps=20,
            guidance_scale=1.01,
            output_type="latent",
            callback_on_step_end=lambda pipe, number, t, given: steps.append(number) or more.get("do", dict)(),
        )

    with pytest.raises(UsageError, match="collapse needs 7 evaluations to tell anything, there are to be 6"):
        guard(pipe, calibration, detector="collapse", decide_by=6)
    with guard(pipe, calibration, detector="collapse", policy="block", decide_by=7) as guarding:
        call("a ring")
        assert (guarding.verdicts[0].action, guarding.verdicts[0].crossed, len(steps)) == ("withheld", 6, 7)
        call("a red circle")
        assert (guarding.verdicts[0].action, len(steps)) == ("none", 20)

    def stop():
        pipe._interrupt = len(steps) == 3
        return {}

    with guard(pipe, calibration, detector="collapse") as guarding:
        call("a ring", do=stop)
    pipe._interrupt = False
    assert np.isnan(guarding.verdicts[0].p_value)
    assert "the run ended after 3 of 20 evaluations" in guarding.verdicts[0].reason
    # a correction goes on beside it
    with guard(pipe, calibration, detector="collapse", policy="mitigate", rule=ALWAYS) as guarding:
        call("a ring")
    assert guarding.verdicts[0].corrected
    assert guarding.verdicts[0].flagged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guards_by_maps_in_two_threads_do_not_see_each_other(dtype):
    pipes = [stable_diffusion().to(dtype), stable_diffusion().to(dtype)]
    fitted = Calibration.fit(pipes[0], PROMPTS, SAMPLING, detectors=["collapse"], batch_size=34)
    before = torch.backends.cuda.matmul.fp32_precision, eval_frame._stance.stance
    found = {pipe: [] for pipe in pipes}

    def work(pipe):
        with guard(pipe, fitted, detector="collapse", rate=0.5) as guarding:
            for _ in range(5):
                call(pipe)
                found[pipe].append(guarding.verdicts[0].score)

    work(pipes[0])
    alone = found[pipes[0]].pop()
    found[pipes[0]].clear()
    threads = [threading.Thread(target=work, args=(pipe,)) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in found.values():
        assert scores == pytest.approx([alone] * 5, rel=1e-3, abs=1e-4)
    assert (torch.backends.cuda.matmul.fp32_precision, eval_frame._stance.stance) == before


def test_images_that_are_made_again_together_keep_their_own_noise_and_words(memorizer):
    pipe, calibration, _ = memorizer
    prompts = ["a red circle and a ring", "a red circle", "a ring on a blue ground"]
    settings = {"num_inference_steps": 20, "guidance_scale": 1.01, "output_type": "latent"}
    with guard(pipe, calibration, policy="mitigate", detector="stability") as guarding:
        images = pipe(
            prompts, generator=[torch.Generator().manual_seed(seed) for seed in (9, 10, 11)], **settings
        ).images
    assert [each.dropped for each in guarding.verdicts] == [("ring",), (), ("ring",)]
    for row, fewer in enumerate(["a red circle and a", "a red circle", "a on a blue ground"]):
        alone = pipe(fewer, generator=torch.Generator().manual_seed(9 + row), **settings).images[0]
        torch.testing.assert_close(images[row], alone, atol=1e-4, rtol=1e-4)


def test_rephrasing_gives_up_when_no_word_helps(memorizer):
    pipe, calibration, _ = memorizer
    settings = {"num_inference_steps": 20, "guidance_scale": 1.01, "output_type": "latent"}
    with guard(pipe, calibration, policy="mitigate", detector="stability", rule=Rephrasing(most=1)) as guarding:
        image = pipe(**settings, prompt="ring", generator=torch.Generator().manual_seed(7)).images
    assert guarding.verdicts[0].action == "withheld"
    assert "no words to leave out; withheld" in guarding.verdicts[0].reason
    assert not image.any()
    embeds = torch.zeros(1, 1, 32)
    embeds[0, 0, 0] = 1.0
    with guard(pipe, calibration, policy="mitigate", detector="stability") as guarding:
        pipe(**settings, prompt_embeds=embeds, generator=torch.Generator())
    assert guarding.verdicts[0].action == "withheld"


@pytest.mark.parametrize("listed", [True, False])
def test_an_image_is_made_again_from_its_own_noise(pipe, calibration, listed):
    """Given latents or a generator that was used before, the probes and the new image start where the first one did."""
    always = replace(calibration, null={"drift": torch.full((99, 3), -1.0)})
    used = torch.Generator().manual_seed(3)  # given alone or in a list, as it comes
    torch.randn(5, generator=used)
    state = used.get_state()
    starts = []

    def remember(module, args, kwargs):
        starts.append((args[0] if args else kwargs["sample"]).chunk(2)[0].clone())

    pipe.unet.register_forward_pre_hook(remember, with_kwargs=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    with guard(pipe, always, policy="mitigate", rule=Rephrasing(probe=1, most=1)):
        pipe("a red circle", generator=[used] if listed else used, **settings)
    expected = torch.randn((1, 4, 8, 8), generator=torch.Generator().set_state(state))
    first, probes, again = starts[0], starts[3], starts[5]
    assert len(starts) == 3 + 2 + 3
    assert torch.equal(first, expected)
    assert torch.equal(probes, expected.expand(3, -1, -1, -1))
    assert torch.equal(again, expected)
    starts.clear()
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    with guard(pipe, always, policy="mitigate", rule=Rephrasing(probe=1, most=1)):
        pipe(["a red circle", "a blue star"], latents=latents, **settings)
    assert torch.equal(starts[3], latents.repeat_interleave(3, dim=0))
    assert torch.equal(starts[5], latents)


def test_attach_and_detach(pipe, calibration):
    guarding = Guard(pipe, calibration, rate=0.5)
    call(pipe)
    assert guarding.verdicts == ()
    guarding.attach()
    with pytest.raises(UsageError, match="guarded already"):
        guarding.attach()
    with pytest.raises(UsageError, match="guarded already"), guard(pipe, calibration, rate=0.5):
        pass
    with pytest.raises(UsageError, match="guarded already"), guarding:
        pass
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
    with guard(pipe, bound, rate=0.5) as guarding:
        call(pipe, ["a red circle"] * 2, seeds=(0, 1), negative_prompt=["a blue star"] * 2)
        assert len(guarding.verdicts) == 2
        with pytest.raises(UsageError, match=r"options\.negative_prompt is None, calibrated a blue star"):
            call(pipe)


def test_what_does_not_fit_is_explained(pipe, calibration):
    for settings, message in [
        ({"policy": "tarot"}, r"unknown policy 'tarot'; known are observe, mitigate, block, regenerate"),
        ({"detector": "tarot"}, "unknown detector 'tarot'"),
        ({"rate": 1.5}, "between 0 and 1"),
        ({"rate": 0.01}, "needs at least 99 null references, the calibration has 68"),
        ({"decide_by": 4}, r"decide_by=4 of 3 evaluations; give one in 1 … 3"),
        ({"policy": "regenerate", "retries": 0}, "got 0 retries"),
    ]:
        with pytest.raises(UsageError, match=message):
            Guard(pipe, calibration, **{"rate": 0.5, **settings})
    with guard(pipe, calibration, rate=0.5):
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
    with guard(other, calibration, rate=0.5):
        other.unet = stable_diffusion().unet
        with pytest.raises(UsageError, match="pipeline's unet was replaced"):
            call(other)
    with torch.no_grad():
        next(other.unet.parameters()).mul_(1.5)
    with pytest.raises(UsageError, match=r"weights\.unet is"):
        Guard(other, calibration, rate=0.5)


def test_a_calibration_can_be_bound_to_further_options(pipe):
    sampling = Sampling(2, 2.0, options={"negative_prompt": "a blue star"})
    bound = Calibration.fit(pipe, [f"a red circle {n}" for n in range(100)], sampling, batch_size=50)
    assert bound.sampling == sampling
    with guard(pipe, bound, rate=0.5) as guarding:
        call(pipe, negative_prompt="a blue star", num_inference_steps=2)
    assert guarding.verdicts[0].p_value > 0


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
@pytest.mark.parametrize("policy", ["regenerate", "mitigate", "block"])
def test_a_safety_flag_is_that_of_the_image_that_is_returned(pipe, calibration, scores, policy, return_dict):
    best, worst = int(np.argmin(scores)), int(np.argmax(scores))
    pipe.safety_checker = pipe.feature_extractor = SafetyChecker()
    with guard(pipe, flagging(calibration, np.mean(sorted(scores)[-2:])), policy=policy, rule=None) as guarding:
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
    assert (policy == "block") <= flags[1]
    assert (policy == "regenerate") <= (not flags[1])


def test_latents_that_break_after_the_decision_are_not_called_clean(pipe, calibration):
    def spoil(pipe, index, t, values):
        if index == 1:
            values["latents"] = values["latents"] * torch.nan
        return values

    for settings in ({"decide_by": 1, "detector": "stability"}, {"detector": "guidance-first"}):
        with guard(pipe, calibration, policy="block", rate=0.5, **settings) as guarding:
            image = call(pipe, callback_on_step_end=spoil)
        assert not guarding.verdicts[0].clean
        assert guarding.verdicts[0].action == "withheld"
        assert not image.any()


def test_a_broken_image_is_not_mended_by_an_earlier_correction(pipe, calibration):
    def spoil(pipe, index, t, values):
        if index == 1:
            values["latents"] = values["latents"] * torch.nan
        return values

    for settings in ({"policy": "mitigate"}, {"policy": "regenerate", "retries": 1}):
        with guard(pipe, calibration, rate=0.5, rule=ALWAYS, **settings) as guarding:
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

    with guard(pipe, calibration, policy="mitigate", rate=0.5, rule=ALWAYS) as guarding:
        images = call(pipe, ["a red circle"] * 2, seeds=(0, 1), callback_on_step_end=spoil, output_type="latent")
    bad, good = guarding.verdicts
    assert not bad.clean
    assert good.corrected == (0, 1, 2)
    assert torch.isfinite(images[1]).all()


def test_the_global_generator_and_the_pipelines_state_are_left_alone(pipe, calibration):
    always = flagging(calibration, EVERYTHING)
    for settings in (
        {"policy": "regenerate", "retries": 1},
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
    with guard(pipe, calibration, rate=0.5, on_verdict=heard.append):
        call(pipe, ["a red circle", "a blue star"], seeds=range(4), num_images_per_prompt=2)
    assert [(each.image, each.prompt) for each in heard] == list(enumerate(["a red circle"] * 2 + ["a blue star"] * 2))


def test_a_copy_of_a_guarded_pipeline_is_another_one(pipe, calibration):
    with guard(pipe, calibration, rate=0.5) as guarding:
        other = copy.copy(pipe)
        other.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        call(other)
        assert guarding.verdicts == ()


def test_wrapped_networks_are_the_same_model(pipe, calibration):
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with guard(pipe, calibration, rate=0.5) as guarding:
        call(pipe)
    assert len(guarding.verdicts) == 1


def test_two_threads_may_share_a_network_compiled_in_place():
    """Entered and left in the order a-b-a-b, which no nesting of blocks would give."""
    pipe = stable_diffusion()
    pipe.unet.compile(backend="eager")
    inner = vars(pipe.unet)["_compiled_call_impl"]
    other = copy.copy(pipe)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    first, second = watch(pipe), watch(other)
    first.__enter__()
    seen = second.__enter__()
    first.__exit__(None, None, None)
    call(other)
    assert seen.trajectory.complete
    second.__exit__(None, None, None)
    assert vars(pipe.unet)["_compiled_call_impl"] is inner


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
    with guard(pipe, again, rate=0.5) as guarding:
        call(pipe, ["a red circle"], **{**given, "negative_prompt": _listed(given.get("negative_prompt"))})
    assert len(guarding.verdicts) == 1


def _listed(negative):
    return [negative] if isinstance(negative, str) else negative
