"""Mitigations that change what the network is given of a caption, on miniatures of all families."""

from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from threading import Thread

import pytest
import torch

from cryptomnesia import UsageError, guard
from cryptomnesia.mitigations import (
    AttentionReweighting,
    ConditionAnnealing,
    Correction,
    EmbeddingDescent,
    PadTokens,
    PartialCaptions,
    RandomTokens,
    RegionRestricted,
)
from cryptomnesia.mitigations.attention_reweighting import Reweighted
from cryptomnesia.mitigations.captions import candidates, draws_for, embedded, embeddings, lacking
from cryptomnesia.mitigations.partial_captions import _lost, _Parts, _Search, _together, edge_correlation
from cryptomnesia.mitigations.random_tokens import _with
from cryptomnesia.mitigations.side_by_side import side_by_side
from cryptomnesia.mitigations.turns import Turns
from cryptomnesia.pipelines.inputs import Inputs, Shared
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import create
from cryptomnesia.testing.miniatures import stable_diffusion
from cryptomnesia.testing.setups import SETUPS
from cryptomnesia.tracing.reading import conditioning
from cryptomnesia.tracing.watching import check_conditioned, watch
from family_cases import CASES, FLOWS, MORE
from nulls import EVERYTHING, flagging
from studios import flagged_of, made_latents, studio_of

EVERY = {**CASES, **MORE, **FLOWS}


def latents(setup: Setup, prompts: list[str], correction: Correction | None = None) -> torch.Tensor:
    """The latents of images with seeds 0, 1, …, made in one call."""
    condition = None if correction is None else (len(prompts), correction.condition)
    return made_latents(setup, prompts, watching=watch(setup.pipe, condition=condition))


def swapped(setup: Setup) -> None:
    """Check that images under the conditioning of other captions are those of the other captions."""
    wanted, others = ["a red circle", "a red circle"], ["a green ring", "a white square"]
    found = latents(setup, wanted, Turns(parts_of(setup, *others)))
    torch.testing.assert_close(found, latents(setup, others), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, latents(setup, wanted), atol=1e-4)
    # a shorter caption has another mask of its padding
    with suppress(UsageError):
        alone = latents(setup, ["a small striped blue star"], Turns(parts_of(setup, "a ring")))
        torch.testing.assert_close(alone, latents(setup, ["a ring"]), atol=1e-4, rtol=1e-4)


def parts_of(setup: Setup, *prompts: str) -> list[list[Inputs]]:
    """The conditioning of captions, one part for each image."""
    return [[conditioning(setup.pipe, [prompt], setup.sampling)] for prompt in prompts]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CASES else [pytest.mark.slow]) for name in EVERY]
)
def test_images_under_the_conditioning_of_another_caption_are_those_of_that_caption(name):
    setup = EVERY[name].setup()
    try:
        check_conditioned(setup.pipe)
    except UsageError:
        assert "controlnet" in name or not setup.family.conditional
    else:
        swapped(setup)


def test_parts_take_turns():
    inputs = [{"encoder_hidden_states": torch.full((1, 2, 3), float(value)), "same": Shared(5)} for value in range(3)]
    turns = Turns([inputs[:2], inputs])
    given = {"encoder_hidden_states": torch.full((2, 2, 3), 9.0), "same": Shared(5)}
    seen = [turns.condition(index, given)["encoder_hidden_states"][:, 0, 0].tolist() for index in range(6)]
    assert seen == [[0, 0], [1, 1], [0, 2], [1, 0], [0, 1], [1, 2]]


def test_captions_of_other_lengths_do_not_fit_into_one_batch():
    assert not Turns([[{"text": torch.zeros(1, tokens, 3)}] for tokens in (2, 4)]).fits
    assert Turns([[{"text": torch.zeros(1, 4, 3)}] for _ in range(2)]).fits


def test_images_whose_captions_do_not_fit_into_one_batch_are_made_one_by_one():
    setup = EVERY["qwen-image"].setup()
    studio = studio_of(setup)
    remade = PartialCaptions().remake(flagged_of(setup, "a red circle", "a small striped blue star"), studio)
    assert [answer.verdict.image for answer in remade] == [0, 1]


def test_an_image_that_is_not_flagged_is_the_same_to_the_last_bit(calibration):
    pipe = stable_diffusion()
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    never = flagging(calibration, 0.0)

    def images():
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        return pipe(["a red circle", "a blue star"], generator=generators, **settings).images

    plain = images()
    with guard(pipe, never, policy="mitigate", mitigation="partial-captions") as guarding:
        guarded = images()
    assert not any(verdict.flagged for verdict in guarding.verdicts)
    assert torch.equal(plain, guarded)


def test_parts_lack_one_word_each_and_the_verdict_says_which():
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a small striped blue star", "star")
    # every part is ordinary, so the plainest take turns
    prepared = PartialCaptions(other_noise=False, usual=1e-9, alike=1.0, parts=2).prepare(flagged, studio)
    assert prepared.hopeless == {1: "no words to leave out"}
    assert prepared.notes[0].startswith("in turn without ")
    assert prepared.dropped[0] == ()
    (parts,) = prepared.correction.parts
    assert len(parts) == 2
    lacking = prepared.notes[0].removeprefix("in turn without ").split(" or ")
    for word, part in zip(lacking, parts, strict=True):
        text = " ".join(other for other in "a small striped blue star".split() if other != word)
        wanted = conditioning(setup.pipe, [text], setup.sampling)
        torch.testing.assert_close(part["encoder_hidden_states"], wanted["encoder_hidden_states"])
    # no part is ordinary
    strict = PartialCaptions().prepare(flagged[:1], Plainer(studio))
    assert strict.hopeless == {0: "no part of the caption is ordinary and unlike the memory"}


def test_a_part_that_is_ordinary_but_like_the_memory_takes_no_turn():
    """The random network hardly hears its caption, so all parts are alike."""
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a small striped blue star")
    call = flagged[0].call
    method = PartialCaptions(other_noise=False, usual=1e-9, most=1)
    assert 0 in method.prepare(flagged, studio).hopeless
    search = _Search(method, call, studio)
    (memory,) = side_by_side([search._estimates([call])], studio)
    words = candidates(call["prompt"][0], [])

    def alike(dropped):
        (estimates,) = side_by_side([search._estimates([lacking(call, dropped)])], studio)
        return edge_correlation(estimates, memory).item()

    one = {word: alike([word]) for word in words}
    assert min(one.values()) > method.alike
    # where the limit lies between them, those below it take turns
    # between two values, which rounding changes in batches of another size
    middle = sum(sorted(one.values())[2:4]) / 2
    prepared = PartialCaptions(other_noise=False, usual=1e-9, alike=middle).prepare(flagged, studio)
    expected = {word for word, value in one.items() if value <= middle}
    assert set(prepared.notes[0].removeprefix("in turn without ").split(" or ")) == expected
    # where one word is not enough, parts lack two, and no word is lost if that can be avoided
    two = {pair: alike(pair) for pair in combinations(words, 2)}
    best = (min(one.values()) + max(value for value in two.values() if value < min(one.values()))) / 2
    (lost,) = PartialCaptions(other_noise=False, usual=1e-9, alike=best, most=2).prepare(flagged, studio).dropped
    found = {pair for pair, value in two.items() if value <= best}
    nearest = sorted(words, key=one.__getitem__)[:3]
    reached = [set(pair) for pair in found if set(pair) & set(nearest)]
    assert set(lost) == set.intersection(*reached)


def test_the_whole_caption_is_taken_from_other_noise_if_that_is_unlike_the_flagged_image(monkeypatch):
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a small striped blue star", "a red circle")
    method = PartialCaptions(usual=1e-9, most=1)
    likeness = {"a small striped blue star": [0.2], "a red circle": [0.9]}
    monkeypatch.setattr(
        _Search,
        "_likeness",
        at_once(lambda _, calls, __=None: likeness.get(calls[0]["prompt"][0], [0.9] * len(calls))),
    )
    prepared = method.prepare(flagged, studio)
    assert prepared.notes[0] == "from other noise"
    assert prepared.dropped[0] == ()
    assert list(prepared.hopeless) == [1]
    # the same call has the same other noise, and another call has another one
    states = [made["generator"].get_state() for made in (prepared.calls[0], method.prepare(flagged, studio).calls[0])]
    assert torch.equal(*states)
    assert not torch.equal(states[0], flagged[0].call["generator"].get_state())
    # with one part that lacks nothing, the image is that of the caption
    alone = method.prepare(flagged[:1], studio)
    made = [studio.make(alone.calls, correction)[0].images for correction in (alone.correction, None)]
    torch.testing.assert_close(*made)
    # beside an image whose caption takes turns it is the same
    mixed = PartialCaptions(usual=1e-9, most=1, alike=0.5)
    likeness["a red circle"] = [0.9]
    monkeypatch.setattr(
        _Search,
        "_likeness",
        at_once(
            lambda _, calls, parts=None: (
                likeness.get(calls[0]["prompt"][0], [0.2] * len(calls)) if parts is None else [0.2]
            )
        ),
    )
    both = mixed.prepare(flagged, studio)
    assert both.notes[0] == "from other noise"
    assert both.notes[1].startswith("in turn without ")
    pictures = studio.make(both.calls, both.correction)[0].images
    torch.testing.assert_close(pictures[:1], made[0], atol=1e-4, rtol=1e-4)
    alone = PartialCaptions(usual=1e-9, most=1, alike=0.5, other_noise=False).prepare(flagged[1:], studio)
    torch.testing.assert_close(pictures[1:], studio.make(alone.calls, alone.correction)[0].images, atol=1e-4, rtol=1e-4)
    # noise that the caller gave is kept, and so is what surrounds a mask
    given = replace(flagged[0], call={**flagged[0].call, "latents": torch.zeros(1)})
    assert side_by_side([_Search(method, given.call, studio)._from_other_noise()], studio) == [None]
    assert RegionRestricted().inner == PartialCaptions(other_noise=False)


def at_once(compute):
    """A step of a search that asks for no runs."""

    def searching(*args):
        yield from ()
        return compute(*args)

    return searching


def test_searches_side_by_side_find_what_each_finds_alone():
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a small striped blue star", "star", "a red circle", "a green ring on a white ground")
    # where the limit for parts is so low, the searches end after other numbers of words
    method = PartialCaptions(usual=1e-9, alike=0.99)
    counting = Counting(studio)
    together = method.prepare(flagged, counting)
    calls = counting.calls
    alone = [method.prepare([image], counting) for image in flagged]
    assert counting.calls - calls > calls
    assert together.notes == [one.notes[0] for one in alone]
    assert together.dropped == [one.dropped[0] for one in alone]
    assert together.hopeless == {row: one.hopeless[0] for row, one in enumerate(alone) if one.hopeless}
    assert max(counting.sizes) <= studio.batch


class Counting:
    """A studio that counts the calls of the pipeline."""

    def __init__(self, studio):
        self._studio = studio
        self.sizes = []

    @property
    def calls(self):
        return len(self.sizes)

    def first(self, calls, *args, **more):
        self.sizes.append(len(calls))
        return self._studio.first(calls, *args, **more)

    def __getattr__(self, name):
        return getattr(self._studio, name)


def test_parts_that_bring_the_memory_back_together_take_no_turns(monkeypatch):
    setup = SETUPS["Stable Diffusion"]()
    flagged = flagged_of(setup, "a small striped blue star")
    words = candidates(flagged[0].call["prompt"][0], [])
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    likeness = dict(zip(words, (0.4, 0.1, 0.3, 0.2, 0.5), strict=True))
    together = []

    def estimates(search, calls, parts=None):
        if parts is not None:
            together.append(len(parts))
            # three or more parts bring the picture back
            return picture if together[-1] > 2 else noise
        texts = [call["prompt"][0].split() for call in calls]
        weights = [likeness[next(word for word in words if word not in text)] if len(text) < 5 else 1 for text in texts]
        return torch.cat([weight * picture + (1 - weight) * noise for weight in weights])

    monkeypatch.setattr(_Search, "_estimates", at_once(estimates))
    prepared = PartialCaptions(other_noise=False, usual=1e-9, alike=0.9, parts=5).prepare(flagged, studio_of(setup))
    assert together == [5, 4, 3, 2]
    assert len(prepared.correction.parts[0]) == 2
    # those that are most like the memory go first
    assert set(prepared.notes[0].removeprefix("in turn without ").split(" or ")) == {"small", "blue"}


def test_parts_that_take_turns_lose_as_few_words_as_possible():
    lacked = [("a", "b"), ("a", "c"), ("a", "d"), ("c", "d"), ("e",)]
    assert _together([0, 1, 2, 3], lacked, 2) == [0, 3]
    assert _together([1, 0, 2], lacked, 4) == [1, 0, 2]
    assert _lost([lacked[0], lacked[1]]) == ("a",)
    assert _together([], lacked, 4) == []
    parts = _Parts({}, [], [lacked[0], lacked[1]])
    assert (parts.lost, parts.note) == (("a",), "in turn without b or c, always without a")
    assert _Parts({}, [], [lacked[4]]).note == "without e"


def test_edges_are_compared_where_they_are_most_alike():
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(1, 4, 17, 17, generator=generator)
    inverted, faded = -memory, 0.1 * memory + 3
    moved = torch.randn(1, 4, 17, 17, generator=generator)
    part = moved.clone()
    part[..., :11, :11] = memory[..., :11, :11]
    broken = memory * torch.nan
    found = edge_correlation(torch.cat([memory, inverted, faded, part, moved, broken]), memory)
    torch.testing.assert_close(found[:4], torch.ones(4))
    assert abs(found[4]) < 0.5
    assert found[5] == 1
    # a plain picture has no edges to compare
    assert edge_correlation(torch.zeros(1, 4, 17, 17), memory).item() == 0


class Plainer:
    """A studio whose reference runs have much less detail."""

    def __init__(self, studio):
        self._studio = studio
        norms = studio.references.norms
        self.references = replace(studio.references, norms={**norms, "detail": norms["detail"] ** 0.1})

    def __getattr__(self, name):
        return getattr(self._studio, name)


@pytest.mark.parametrize("settings", [{"usual": 0.0}, {"usual": 1.0}, {"parts": 0}, {"most": 0}])
def test_settings_with_which_nothing_takes_turns_are_refused(settings):
    with pytest.raises(UsageError, match="for partial-captions; give"):
        PartialCaptions(**settings)


def test_a_pipeline_with_a_second_network_that_reads_captions_is_refused():
    with pytest.raises(UsageError, match="cannot be changed during a run"):
        PartialCaptions().check(MORE["controlnet"].setup())
    message = "partial-captions needs runs that begin from noise .* is given image; use `rephrasing`"
    with pytest.raises(UsageError, match=message):
        PartialCaptions().check(MORE["image to image"].setup())


def test_the_embedding_moves_until_the_caption_pulls_no_harder_than_the_target():
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a red circle", "a small striped blue star")
    step = studio.first([image.call for image in flagged], 1).step(0)
    before = (step.cond.value - step.uncond.value).flatten(1).norm(dim=1)
    target = 0.9 * before.min().item()
    prepared = EmbeddingDescent(target=target, rate=0.05, most=60).prepare(flagged, studio)
    ((path, moved),) = prepared.correction.tensors.items()
    assert path == ("encoder_hidden_states",)
    assert torch.equal(moved[:, 0], step.cond_inputs["encoder_hidden_states"][:, 0])
    cond = setup.family.denoiser()(step.cond.x, step.level, embedded(step.cond_inputs, {path: moved}))
    assert ((cond.value - step.uncond.value).flatten(1).norm(dim=1) <= target + 1e-5).all()
    far = EmbeddingDescent(target=1e9).prepare(flagged, studio).correction.tensors[path]
    assert torch.equal(far, step.cond_inputs["encoder_hidden_states"])


def test_the_embedding_is_moved_in_inference_mode_as_well():
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    with torch.inference_mode():
        prepared = EmbeddingDescent(target=0.0, most=2).prepare(flagged_of(setup, "a red circle"), studio)
    assert not next(iter(prepared.correction.tensors.values())).requires_grad


def test_noise_on_the_embedding_fades_and_keeps_its_moments():
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a red circle", "a green ring")
    mitigation = ConditionAnnealing(strength=0.5, clear=0.5, noisy=1.0)
    correction = mitigation.prepare(flagged, studio).correction
    values = next(iter(correction.tensors.values()))
    given = {"encoder_hidden_states": values}
    correlations = []
    for index in range(4):
        found = correction.condition(index, given)
        if found is None:
            correlations.append(1.0)
            continue
        noisy = found["encoder_hidden_states"]
        torch.testing.assert_close(noisy.mean(dim=(1, 2)), values.mean(dim=(1, 2)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(noisy.std(dim=(1, 2)), values.std(dim=(1, 2)), atol=1e-5, rtol=1e-4)
        correlations.append(torch.corrcoef(torch.stack([noisy[0].flatten(), values[0].flatten()]))[0, 1].item())
    assert correlations[0] < correlations[1] < correlations[2] == correlations[3] == 1.0
    assert abs(correlations[0]) < 0.2


def test_an_embedding_is_what_differs_between_captions():
    inputs = {"text": torch.ones(2, 3), "times": torch.ones(2), "mask": torch.ones(2, 3), "_note": torch.ones(1)}
    other = {"text": torch.zeros(2, 3), "times": torch.ones(2), "mask": torch.zeros(2, 3), "_note": torch.zeros(1)}
    nested = {"more": {"pooled": torch.ones(2, 4)}}, {"more": {"pooled": torch.zeros(2, 4)}}
    assert embeddings({**inputs, **nested[0]}, {**other, **nested[1]}).keys() == {("text",), ("more", "pooled")}
    changed = embedded({**inputs, **nested[0]}, {("more", "pooled"): torch.full((2, 4), 7.0)})
    assert changed["more"]["pooled"].eq(7).all()
    assert nested[0]["more"]["pooled"].eq(1).all()
    with pytest.raises(UsageError, match="were not found"):
        embeddings(inputs, inputs)


def test_random_words_stand_between_the_words():
    assert _with("a red circle", ["x", "y"], [0, 4]) == "x a red circle y"
    assert _with("a red circle", ["x"], [2]) == "a red x circle"
    assert _with("", ["x"], [5]).strip() == "x"
    setup = SETUPS["Stable Diffusion"]()
    studio = studio_of(setup)
    flagged = flagged_of(setup, "a red circle", "a red circle")
    calls = RandomTokens(count=3).prepare(flagged, studio).calls
    texts = [call["prompt"][0] for call in calls]
    assert texts[0] != texts[1]
    assert [call["prompt"][0] for call in RandomTokens(count=3).prepare(flagged, studio).calls] == texts
    assert all(len(text.split()) == 6 and [w for w in text.split() if w in "a red circle".split()] for text in texts)
    (call,) = RandomTokens(count=2, kind="numbers").prepare(flagged[:1], studio).calls
    assert sum(word.isdigit() for word in call["prompt"][0].split()) == 2


def test_draws_differ_by_purpose_and_noise():
    calls = [{"generator": torch.Generator().manual_seed(seed)} for seed in (0, 0, 1)]
    seeds = [draws_for(call, "a").initial_seed() for call in calls]
    assert seeds[0] == seeds[1] != seeds[2]
    assert draws_for(calls[0], "b").initial_seed() != seeds[0]


def test_padding_changes_during_the_call_only_and_end_tokens_are_zero():
    setup = SETUPS["Stable Diffusion"]()
    tokenizer = setup.pipe.tokenizer
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    mitigation = PadTokens(token="red")
    mitigation.check(setup)
    studio = studio_of(setup)
    prepared = mitigation.prepare(flagged_of(setup, "a circle"), studio)
    with prepared.correction.around(setup.pipe):
        ids = tokenizer("a circle", padding="max_length").input_ids
        assert tokenizer.decode(ids[-1:]).strip() == "red"
    assert tokenizer.pad_token == tokenizer.eos_token
    end = prepared.correction.ends.item()
    given = {"encoder_hidden_states": torch.ones(1, len(ids), 4)}
    changed = prepared.correction.condition(0, given)["encoder_hidden_states"]
    assert changed[0, end].eq(0).all()
    assert changed.sum() == 4 * (len(ids) - 1)
    with pytest.raises(UsageError, match="has no token 'nonsense'"):
        PadTokens(token="nonsense").check(setup)
    tokenizer.pad_token = "red</w>"
    with pytest.raises(UsageError, match="replaces end tokens"):
        PadTokens().check(setup)
    tokenizer.pad_token = before


def test_attention_is_changed_in_the_conditional_branch_alone():
    setup = SETUPS["Stable Diffusion"]()
    unet = setup.pipe.unet
    layer = next(module for module in unet.modules() if getattr(module, "is_cross_attention", False))
    hidden = torch.randn(2, 5, layer.to_q.in_features, generator=torch.Generator().manual_seed(0))
    captions = torch.randn(2, 6, layer.to_k.in_features, generator=torch.Generator().manual_seed(1))
    plain = layer(hidden, encoder_hidden_states=captions)
    correction = Reweighted(1.25, torch.tensor([3]))
    with correction.around(setup.pipe):
        changed = layer(hidden, encoder_hidden_states=captions)
    assert torch.equal(layer(hidden, encoder_hidden_states=captions), plain)
    torch.testing.assert_close(changed[0], plain[0], atol=1e-6, rtol=1e-5)
    heads = layer.heads
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in (layer.to_q(hidden), layer.to_k(captions), layer.to_v(captions))
    )
    logits = query[1] @ key[1].transpose(-1, -2) * layer.scale
    logits[..., 0] *= 1.25
    logits[..., 4:] = -torch.inf
    by_hand = layer.to_out[0]((logits.softmax(dim=-1) @ value[1]).transpose(0, 1).flatten(1))
    torch.testing.assert_close(changed[1], by_hand, atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="above 0"):
        AttentionReweighting(start=0.0).check(setup)


@pytest.mark.parametrize(
    ("mitigation", "blinded", "telling"),
    [
        ("guidance-delay", ["early-detail", "drift", "stability", "attention-entropy"], []),
        ("condition-annealing", ["early-detail", "combined", "sharpness"], []),
        ("embedding-descent", ["guidance-first", "combined", "information"], ["early-detail", "drift"]),
        ("sail", ["guidance-mean"], ["early-detail"]),
        ("initial-noise", ["guidance-mean"], ["early-detail"]),
        ("attention-reweighting", ["bright-ending", "attention-entropy"], ["early-detail"]),
        ("partial-captions", [], ["early-detail", "drift"]),
        ("region-restricted", [], ["early-detail"]),
    ],
)
def test_a_mitigation_says_which_detectors_it_blinds(mitigation, blinded, telling):
    made = create("mitigation", mitigation)
    assert all(made.blinds(create("detector", name)) for name in blinded)
    assert not any(made.blinds(create("detector", name)) for name in telling)


def test_a_detector_that_the_mitigation_blinds_is_refused(calibration):
    with pytest.raises(UsageError, match="early-detail reads detail, which guidance-delay makes ordinary"):
        guard(stable_diffusion(), calibration, policy="mitigate", mitigation="guidance-delay")


def test_attention_of_other_threads_is_left_alone():
    setup = SETUPS["Stable Diffusion"]()
    plain = latents(setup, ["a red circle"])
    found = []
    with Reweighted(2.0, torch.tensor([2])).around(setup.pipe):
        thread = Thread(target=lambda: found.append(latents(setup, ["a red circle"])))
        thread.start()
        thread.join()
        here = latents(setup, ["a red circle"])
    assert torch.equal(found[0], plain)
    assert not torch.allclose(here, plain)


def test_a_network_that_is_compiled_in_place_gets_the_other_captions():
    setup = SETUPS["Stable Diffusion"]()
    plain = latents(setup, ["a green ring"])
    setup.pipe.unet._compiled_call_impl = setup.pipe.unet._call_impl
    parts = [[conditioning(setup.pipe, ["a green ring"], setup.sampling)]]
    torch.testing.assert_close(latents(setup, ["a red circle"], Turns(parts)), plain, atol=1e-5, rtol=1e-5)


def test_images_that_are_flagged_are_made_again_without_a_trace(calibration):
    pipe = stable_diffusion()
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    always = flagging(calibration, EVERYTHING)
    hooks = len(pipe.unet._forward_pre_hooks), len(pipe.unet._forward_hooks)
    with guard(pipe, always, policy="mitigate", mitigation="partial-captions") as guarding:
        pipe(["a red circle", "a blue star"], generator=torch.Generator().manual_seed(0), **settings)
    assert all(verdict.action == "withheld" for verdict in guarding.verdicts)
    assert (len(pipe.unet._forward_pre_hooks), len(pipe.unet._forward_hooks)) == hooks
