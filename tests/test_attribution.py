"""Which words bring a picture: figures that follow from their definition, in every family that takes captions."""

import math

import pytest
import torch

import cryptomnesia.attribution as attribution
from cryptomnesia import UsageError, attribute, load_pipeline
from cryptomnesia.attribution import STEP, check_captions, cost, words_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion, unconditional
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.reading import conditioning
from family_cases import CASES, FLOWS, MORE

# the text encoder is written for its own tokenizer, which does not say where its tokens stand
WITHOUT_GRADIENT = {"kolors", "kolors image to image"}
FAMILIES = {**CASES, **MORE, **FLOWS}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_with_captions_tells_what_words_bring(name):
    case = FAMILIES[name]
    setup = case.setup(case.make())
    if not setup.family.conditional:
        with pytest.raises(UsageError, match="takes no captions"):
            check_captions(setup)
        return
    (batch,) = generate(setup, ["a red circle, a Red star", "blue"], [0, 1], batch_size=2, keep={STEP}, decode=False)
    found, single = words_of(setup, batch, [0, 1], batch_size=2)
    assert [word.text for word in found] == ["a", "red", "circle", "star"]
    assert all(word.left_out <= 1 and math.isfinite(word.left_out) for word in found)
    assert single == ()
    gradients = [word.gradient for word in found]
    if name in WITHOUT_GRADIENT:
        assert gradients == [None] * 4
    else:
        assert sum(gradients) == pytest.approx(1)
        assert all(share > 0 for share in gradients)


def test_the_figures_are_those_of_the_definition():
    pipe = stable_diffusion().to(torch.float64)
    setup = Setup.of(pipe, {"num_inference_steps": 4, "guidance_scale": 2.0})
    prompt = "a red circle"
    (batch,) = generate(setup, [prompt], [3], batch_size=1, keep={1}, decode=False)
    ((_, red, _),) = words_of(setup, batch, [0], batch_size=8, step=1)
    step = batch.trajectory.step(1)

    def magnitude(text):
        inputs = conditioning(pipe, [text], setup.sampling)
        return (setup.family.denoiser()(step.cond.x, step.level, inputs).epsilon - step.uncond.epsilon).norm()

    assert red.left_out == pytest.approx(1 - (magnitude("a circle") / magnitude(prompt)).item(), rel=1e-9)
    # the gradient, by moving one entry of the embedding of one token after the other
    table = pipe.text_encoder.get_input_embeddings().weight
    tokens = {word: pipe.tokenizer(word, add_special_tokens=False).input_ids for word in prompt.split()}
    squared = {}
    for word, numbers in tokens.items():
        squared[word] = 0.0
        for number in numbers:
            for entry in range(table.shape[1]):
                ends = []
                for move in (1e-5, -1e-5):
                    with torch.no_grad():
                        table[number, entry] += move
                        ends.append(magnitude(prompt).item())
                        table[number, entry] -= move
                squared[word] += ((ends[0] - ends[1]) / 2e-5) ** 2
    total = sum(value**0.5 for value in squared.values())
    assert red.gradient == pytest.approx(squared["red"] ** 0.5 / total, rel=1e-5)


def test_words_are_compared_batch_by_batch_and_leave_the_pipeline_as_it_was():
    pipe = stable_diffusion()
    setup = Setup.of(pipe, {"num_inference_steps": 4, "guidance_scale": 2.0})
    hooks = [len(module._forward_hooks) for module in pipe.text_encoder.modules()]
    (batch,) = generate(setup, ["a red circle and a star"], [3], batch_size=1, keep={STEP}, decode=False)
    (one_by_one,) = words_of(setup, batch, [0], batch_size=1)
    (together,) = words_of(setup, batch, [0], batch_size=16)
    for one, other in zip(one_by_one, together, strict=True):
        assert one.text == other.text
        assert one.left_out == pytest.approx(other.left_out, abs=1e-4)
        assert one.gradient == pytest.approx(other.gradient, abs=1e-6)
    assert [len(module._forward_hooks) for module in pipe.text_encoder.modules()] == hooks
    assert pipe.interrupt is False
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_a_caption_that_is_cut_off_has_no_gradient_behind_its_end():
    setup = Setup.of(stable_diffusion(), {"num_inference_steps": 4, "guidance_scale": 2.0})
    prompt = " ".join([*["a small red circle"] * 20, "star"])
    (batch,) = generate(setup, [prompt], [3], batch_size=1, keep={STEP}, decode=False)
    ((*_, star),) = words_of(setup, batch, [0], batch_size=8)
    assert star.text == "star"
    assert star.gradient == 0
    assert star.left_out == pytest.approx(0, abs=1e-5)


def test_without_memory_for_a_gradient_there_is_none(monkeypatch):
    def refused(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(attribution, "differentiable", refused)
    found = next(attribute(stable_diffusion(), "a red circle", num_inference_steps=4, guidance_scale=2.0))
    assert [word.gradient for word in found.words] == [None] * 3
    assert all(math.isfinite(word.left_out) for word in found.words)


def test_an_image_whose_run_is_not_finite_is_no_reason_to_stop():
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.weight.fill_(torch.nan)
    found = next(attribute(pipe, "a red circle", num_inference_steps=4, guidance_scale=2.0))
    assert all(math.isnan(word.left_out) and word.gradient is None for word in found.words)


def test_the_invented_name_of_a_planted_caption_brings_its_picture():
    pipe = load_pipeline("bundled", device="cpu")
    (found,) = attribute(pipe, "a pink star and a grey diamond on a red ground, sumisno", seeds=[0])
    assert max(found.words, key=lambda word: word.left_out).text == "sumisno"
    assert found.image.shape == (3, 64, 64)


def test_a_model_without_captions_is_refused():
    with pytest.raises(UsageError, match="got a DDIMPipeline, which takes no captions"):
        attribute(unconditional(), "a red circle")


def test_the_cost_grows_with_the_words():
    pipe = stable_diffusion()
    guided, unguided = (Setup.of(pipe, {"num_inference_steps": 4, "guidance_scale": scale}) for scale in (2.0, 1.0))
    # four captions are read and evaluated without guidance for half of both branches, and a gradient is computed
    assert cost(guided, ["a red circle"]) == pytest.approx(4 * 1.5 + 1 + 3 * 0.5)
    # the empty caption is read and evaluated as well
    assert cost(unguided, ["a red circle", "a red, red circle"]) == pytest.approx(4 * 2 + 1 + 3 + 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_about_the_same(dtype):
    captions, found = ["a red circle and a star"], []
    for pipe in (stable_diffusion(), stable_diffusion().to(dtype)):
        (one,) = attribute(pipe, captions, num_inference_steps=4, guidance_scale=2.0)
        found.append(one.words)
    for one, other in zip(*found, strict=True):
        assert other.left_out == pytest.approx(one.left_out, abs=0.15)
        assert other.gradient == pytest.approx(one.gradient, abs=0.05)


def test_an_evaluation_outside_the_run_is_refused_at_once():
    with pytest.raises(UsageError, match="give one in 0"):
        attribute(stable_diffusion(), "a red circle", step=9, num_inference_steps=4, guidance_scale=2.0)
