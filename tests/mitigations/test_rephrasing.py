import pytest
import torch

from cryptomnesia import Collapse, MapMean, Regenerate, Rephrasing, UsageError, calibrate, guard
from cryptomnesia.guarding.black import black_latents
from cryptomnesia.mitigations.rephrasing import candidates
from cryptomnesia.testing.miniatures import PROMPTS, stable_diffusion, stable_diffusion_xl
from cryptomnesia.words import without
from memorizing import CALL, memorizer
from nulls import EVERYTHING, flagging


@pytest.mark.parametrize("policy", ["mitigate", Regenerate(retries=1)])
@pytest.mark.parametrize(
    ("detector", "decide_by"), [("stability", None), ("stability", 5), ("collapse", None), ("collapse", 7)]
)
def test_rephrasing_drops_the_word_that_brings_the_memory_back(policy, detector, decide_by):
    pipe, calibration, planted = memorizer()
    prompts = ["a red circle and a ring on a blue ground", "a red circle"]

    def distances():
        generators = [torch.Generator().manual_seed(seed) for seed in (9, 10)]
        settings = {**CALL, "output_type": "latent"}
        return (pipe(prompts, generator=generators, **settings).images - planted).flatten(1).norm(dim=1)

    plain = distances()
    assert plain[0] < 0.5 < plain[1]
    with guard(
        pipe, calibration, policy=policy, detector=detector, decide_by=decide_by, mitigation="rephrasing"
    ) as guarding:
        guarded = distances()
    flagged, ordinary = guarding.verdicts
    assert flagged.dropped == ("ring",)
    assert flagged.action == "mitigated"
    assert "without ring p = " in flagged.reason
    assert ordinary.action == "none"
    assert guarded[0] > 10 * plain[0]
    assert guarded[1] == plain[1]


def test_images_that_are_made_again_together_keep_their_own_noise_and_words():
    pipe, calibration, _ = memorizer()
    prompts = ["a red circle and a ring", "a red circle", "a ring on a blue ground"]
    settings = {**CALL, "output_type": "latent"}
    with guard(pipe, calibration, policy="mitigate", detector="stability", mitigation="rephrasing") as guarding:
        images = pipe(
            prompts, generator=[torch.Generator().manual_seed(seed) for seed in (9, 10, 11)], **settings
        ).images
    assert [verdict.dropped for verdict in guarding.verdicts] == [("ring",), (), ("ring",)]
    for row, fewer in enumerate(["a red circle and a", "a red circle", "a on a blue ground"]):
        alone = pipe(fewer, generator=torch.Generator().manual_seed(9 + row), **settings).images[0]
        torch.testing.assert_close(images[row], alone, atol=1e-4, rtol=1e-4)


def test_rephrasing_gives_up_when_no_word_helps():
    pipe, calibration, _ = memorizer()
    settings = {**CALL, "output_type": "latent"}
    with guard(pipe, calibration, policy="mitigate", detector="stability", mitigation=Rephrasing(most=1)) as guarding:
        image = pipe(**settings, prompt="ring", generator=torch.Generator().manual_seed(7)).images
    assert guarding.verdicts[0].action == "withheld"
    assert "no words to leave out; withheld" in guarding.verdicts[0].reason
    assert torch.equal(image[0], black_latents(pipe, image[0], {}))
    embeds = torch.zeros(1, 1, 32)
    embeds[0, 0, 0] = 1.0
    with guard(pipe, calibration, policy="mitigate", detector="stability", mitigation="rephrasing") as guarding:
        pipe(**settings, prompt_embeds=embeds, generator=torch.Generator())
    assert guarding.verdicts[0].action == "withheld"


@pytest.mark.parametrize("listed", [True, False])
def test_an_image_is_made_again_from_its_own_noise(calibration, listed):
    """Given latents or a generator that was used before, the probes and the new image start where the first one did."""
    pipe = stable_diffusion()
    always = flagging(calibration, EVERYTHING)
    used = torch.Generator().manual_seed(3)  # given alone or in a list, as it comes
    torch.randn(5, generator=used)
    state = used.get_state()
    starts = []

    def remember(module, args, kwargs):
        starts.append((args[0] if args else kwargs["sample"]).chunk(2)[0].clone())

    pipe.unet.register_forward_pre_hook(remember, with_kwargs=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    with guard(pipe, always, policy="mitigate", mitigation=Rephrasing(probe=1, most=1)):
        pipe("a red circle", generator=[used] if listed else used, **settings)
    expected = torch.randn((1, 4, 8, 8), generator=torch.Generator().set_state(state))
    # the flagged run ends after one evaluation, when the score of `early-detail` is settled
    first, probes, again = starts[0], starts[1], starts[2]
    assert len(starts) == 1 + 1 + 3
    assert torch.equal(first, expected)
    assert torch.equal(probes, expected.expand(3, -1, -1, -1))
    assert torch.equal(again, expected)
    starts.clear()
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    with guard(pipe, always, policy="mitigate", mitigation=Rephrasing(probe=1, most=1)):
        pipe(["a red circle", "a blue star"], latents=latents, **settings)
    assert torch.equal(starts[1], latents.repeat_interleave(3, dim=0))
    assert torch.equal(starts[2], latents)


@pytest.mark.parametrize(
    ("text", "dropped", "left"),
    [
        ("a cat, a dog", [], ["a", "cat", "dog"]),
        ("a cat, a dog", ["cat"], ["a", "dog"]),
        ("A cat and a Cat", [], ["A", "cat", "and"]),
        ("A cat and a Cat", ["Cat"], ["A", "and"]),
        ("红猫，狗", [], ["红", "猫", "狗"]),
        ("a cat", ["a"], []),
        ("cat", [], []),
        ("cat, Cat!", [], []),
        ("...", [], []),
    ],
)
def test_words_can_be_dropped_until_one_is_left(text, dropped, left):
    assert candidates(text, dropped) == left


def test_a_caption_without_spaces_is_tried_character_by_character(pipe, calibration):
    always = flagging(calibration, EVERYTHING)
    with guard(pipe, always, policy="mitigate", mitigation=Rephrasing(most=2)) as guarding:
        pipe("红猫坐在垫子上", num_inference_steps=3, guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    (verdict,) = guarding.verdicts
    assert len(verdict.dropped) == 2
    assert all(len(word) == 1 and word in "红猫坐在垫子上" for word in verdict.dropped)
    assert verdict.action == "withheld"


def test_every_prompt_of_a_call_loses_the_word():
    """Stable Diffusion XL reads a second prompt with its second text encoder."""
    pipe = stable_diffusion_xl()
    calibration = calibrate(pipe, PROMPTS, batch_size=34, num_inference_steps=3, guidance_scale=2.0)
    read = []
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: (
        read.append((kwargs["prompt"], kwargs["prompt_2"])) or encode(*args, **kwargs)
    )
    pipe.encode_prompt.cryptomnesia_fingerprint = ""
    with guard(pipe, flagging(calibration, EVERYTHING), policy="mitigate", mitigation=Rephrasing(most=1)) as guarding:
        pipe(
            "a red cat, sitting",
            prompt_2="the cat (red)",
            num_inference_steps=3,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
        )
    (word,) = guarding.verdicts[0].dropped
    first, *tried, last = read
    assert first == ("a red cat, sitting", "the cat (red)")
    assert [prompt for prompts, _ in tried for prompt in prompts] == [
        "red cat, sitting",
        "a cat, sitting",
        "a red, sitting",
        "a red cat",
    ]
    assert [prompt for _, prompts in tried for prompt in prompts] == [
        "the cat (red)",
        "the cat",
        "the (red)",
        "the cat (red)",
    ]
    assert last == ([without("a red cat, sitting", [word])], [without("the cat (red)", [word])])


def test_a_detector_with_signals_is_replaced_by_one_that_has_something_to_compare():
    """Also where the guard decides before that one has a score: its probes then run on for as long as it needs."""
    pipe, _, _ = memorizer()
    early = Collapse(step=0)
    assert MapMean(early).earliest(20) == 1
    runs = calibrate(pipe, [f"a red circle {n}" for n in range(150)], detectors=[MapMean(early)], batch_size=50, **CALL)
    always = flagging(runs, EVERYTHING, MapMean(early))
    with guard(
        pipe, always, policy="mitigate", detector=MapMean(early), decide_by=1, mitigation=Rephrasing(most=1)
    ) as guarding:
        pipe("a red circle and a ring", generator=torch.Generator().manual_seed(9), output_type="latent", **CALL)
    assert guarding.verdicts[0].dropped == ("ring",)


def test_settings_that_drop_nothing_are_refused():
    for settings, message in [({"probe": 0}, "got probe=0 for rephrasing"), ({"most": 0}, "got most=0")]:
        with pytest.raises(UsageError, match=message):
            Rephrasing(**settings)
