import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from cryptomnesia import Sampling, UsageError
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.pipelines.tokenizers import Excess
from cryptomnesia.testing.miniatures import PROMPTS, SAMPLING, flux, stable_diffusion, unconditional
from cryptomnesia.tracing.generation import check_call, cut_off, generate, images_of, kept_prompts


@pytest.fixture
def setup(pipe):
    return Setup(pipe, SAMPLING)


def test_an_image_depends_on_its_prompt_and_seed_alone(setup):
    (whole,) = generate(setup, PROMPTS[:5], [3, 1, 4, 1, 5])
    parts = list(generate(setup, PROMPTS[:5], [3, 1, 4, 1, 5], batch_size=2))
    assert [part.prompts for part in parts] == [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:5]]
    assert [part.seeds for part in parts] == [[3, 1], [4, 1], [5]]
    torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        torch.cat([part.trajectory.norms["z"] for part in parts]), whole.trajectory.norms["z"], rtol=1e-3, atol=1e-3
    )
    assert whole.images.shape == (5, 3, 16, 16)
    assert whole.images.dtype == torch.float32
    assert 0 <= whole.images.min() <= whole.images.max() <= 1


def test_latents_are_decoded_only_where_that_is_wanted(setup, monkeypatch):
    monkeypatch.setattr(setup.pipe.vae, "decode", None)
    (batch,) = generate(setup, PROMPTS[:1], [0], decode=False)
    assert batch.images.shape == (1, 4, 8, 8)
    assert torch.equal(batch.images, batch.trajectory.latents)
    # a model in pixel space has nothing to decode
    (batch,) = generate(Setup(unconditional(), Sampling(2, 1.0)), [""], [0], decode=False)
    assert batch.images.shape == (1, 3, 8, 8)


def test_progress_goes_up_to_the_number_of_images(setup):
    seen = []
    list(generate(setup, PROMPTS[:3], range(3), batch_size=2, progress=seen.append))
    assert seen == pytest.approx([2 / 3, 4 / 3, 2, 2 + 1 / 3, 2 + 2 / 3, 3])


def test_a_context_is_entered_around_every_call(setup):
    entered = []

    @contextmanager
    def around():
        entered.append("in")
        yield
        entered.append("out")

    list(generate(setup, PROMPTS[:3], range(3), batch_size=2, around=around))
    assert entered == ["in", "out"] * 2


def test_the_progress_bar_of_the_pipeline_is_silent_and_put_back(capfd):
    pipe = stable_diffusion()
    pipe.set_progress_bar_config()
    list(generate(Setup(pipe, SAMPLING), PROMPTS[:1], [0]))
    assert capfd.readouterr().err == ""
    assert pipe._progress_bar_config == {}


def test_what_diffusers_refuses_is_a_usage_error(pipe):
    setup = Setup(pipe, Sampling(3, 2.0, options={"timesteps": [999, 500], "sigmas": [1.0, 0.5]}))
    with pytest.raises(UsageError, match=r"StableDiffusionPipeline refuses: Only one of `timesteps` or `sigmas`"):
        list(generate(setup, PROMPTS[:1], [0]))
    with pytest.raises(UsageError, match="got a batch size of 0; give at least 1"):
        list(generate(Setup(pipe, SAMPLING), PROMPTS[:1], [0], batch_size=0))
    with pytest.raises(UsageError, match=r"got batch_size=2\.5; give a whole number"):
        generate(Setup(pipe, SAMPLING), PROMPTS[:1], [0], batch_size=2.5)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(0, 2.0), "got 0 steps; give at least 1"),
        (Sampling(1001, 2.0), "got 1001 steps, the model knows 1000 timesteps; give fewer"),
        (Sampling(3, 2.0, height=32), "got height 32 and width None; give both or neither"),
        (Sampling(3, 2.0, width=32), "got height None and width 32; give both or neither"),
    ],
)
def test_settings_that_cannot_work_are_refused(pipe, sampling, message):
    with pytest.raises(UsageError, match=message):
        check_call(Setup(pipe, sampling))


def test_captions_and_seeds_of_all_images(setup):
    assert images_of(setup, "a", None, 1) == (["a"], [0])
    assert images_of(setup, ["a", "b"], None, 2) == (["a", "a", "b", "b"], [0, 1, 0, 1])
    assert images_of(setup, ["a", "b"], [7, 8], 1) == (["a", "b"], [7, 8])
    for prompts, seeds, count, message in [
        ([], None, 1, "got no prompts; give at least one"),
        (["a", " "], None, 1, "got an empty prompt; give a text"),
        ("", None, 1, "got an empty prompt"),
        (["a"], None, 0, "got 0 images per prompt; give at least 1"),
        (["a"], None, 10**11, "got 100000000000 images per prompt; give at most 100000"),
        (["a"], [1, 2], 1, "got 2 seeds for 1 images; give one per image"),
        (["a", "b"], [1], 1, "got 1 seeds for 2 images"),
    ]:
        with pytest.raises(UsageError, match=message):
            images_of(setup, prompts, seeds, count)
    # a model without captions takes empty ones
    assert images_of(Setup(unconditional(), Sampling(2, 1.0)), [""] * 2, None, 1) == (["", ""], [0, 0])


@pytest.mark.parametrize(
    ("prompts", "seeds", "count", "message"),
    [
        (None, None, 1, "got prompts=None; give a text, a list of texts, or the Path of a prompts file"),
        ([3], None, 1, "got 3 among the prompts; give texts only"),
        (Path("absent.txt"), None, 1, "no prompts file absent.txt; check the path"),
        ("a", 3, 1, "got seeds=3; give a list of whole numbers, one per image"),
        ("a", [1.5], 1, r"got seeds\[0\]=1\.5; give a whole number"),
        ("a", ["1"], 1, r"got seeds\[0\]='1'; give a whole number"),
        ("a", [-1], 1, r"got the seed -1; give one in 0 … 2\*\*64 - 1"),
        ("a", [2**64], 1, "got the seed 18446744073709551616; give one in 0"),
        ("a", None, 2.5, r"got images_per_prompt=2\.5; give a whole number"),
    ],
)
def test_what_is_no_prompt_and_no_seed_is_refused(setup, prompts, seeds, count, message):
    with pytest.raises(UsageError, match=message) as refused:
        images_of(setup, prompts, seeds, count)
    assert "\n" not in str(refused.value)


def test_prompts_may_be_a_file_and_seeds_numbers_of_numpy(setup, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\nb\n")
    captions, seeds = images_of(setup, path, np.array([3, 2**63]).astype(np.uint64), 1)
    assert (captions, seeds) == (["a", "b"], [3, 2**63])
    assert {type(seed) for seed in seeds} == {int}


LONG = "red " * 100


def test_long_prompts_are_cut_off_as_diffusers_does_it_left_out_or_refused(setup, caplog):
    limit = setup.pipe.tokenizer.model_max_length
    words = rf"'red red .*\.\.\.' has 102 tokens, the model takes {limit}"
    assert images_of(setup, ["a", LONG, "b", LONG], None, 1) == (["a", LONG, "b", LONG], [0, 0, 0, 0])
    (record,) = caplog.records
    message = record.getMessage()
    assert re.fullmatch(f"2 of 4 prompts are too long and cut off, as diffusers does it; the first, {words}", message)
    # seeds belong to their prompts
    assert images_of(setup, ["a", LONG, "b"], [5, 6, 7], 1, "skip") == (["a", "b"], [5, 7])
    assert "1 of 3 prompts are too long and left out; the first" in caplog.records[1].getMessage()
    with pytest.raises(UsageError, match=f"prompt {words}; shorten it, or give long='truncate' or 'skip'"):
        images_of(setup, ["a", LONG], None, 1, "error")
    with pytest.raises(UsageError, match=f"prompt {words}, and no other is shorter"):
        images_of(setup, [LONG], None, 1, "skip")
    with pytest.raises(UsageError, match="got long='cut'; give truncate, skip, error"):
        images_of(setup, ["a"], None, 1, "cut")
    caplog.clear()
    assert kept_prompts(setup, ["a", "b"], "error") == ["a", "b"]
    assert not caplog.records


def test_the_end_of_a_long_prompt_has_no_influence(setup):
    first, second = (
        next(generate(setup, [f"{'red ' * 40}{end}"], [0])).images for end in ("a green star", "a blue circle")
    )
    assert torch.equal(first, second)


def test_a_long_negative_prompt_is_named(pipe, caplog):
    setup = Setup(pipe, Sampling(3, 2.0, options={"negative_prompt": LONG}))
    assert kept_prompts(setup, ["a"], "skip") == ["a"]
    assert caplog.records[0].getMessage().startswith("the negative prompt is cut off, as diffusers does it: 'red")
    with pytest.raises(UsageError, match=r"negative prompt 'red .* has 102 tokens"):
        kept_prompts(setup, ["a"], "error")


def test_the_sequence_length_of_the_call_counts():
    pipe = flux()
    text = " ".join(["red"] * 100)
    assert cut_off(Setup.of(pipe, {}), [text]) == {}
    assert cut_off(Setup.of(pipe, {"max_sequence_length": 64}), [text]) == {text: Excess(102, 64)}


def test_tokenizers_are_left_as_they_are(pipe):
    backend = pipe.tokenizer.backend_tokenizer
    before = backend.padding, backend.truncation
    kept_prompts(Setup(pipe, SAMPLING), ["a red circle"])
    assert (backend.padding, backend.truncation) == before
