import copy

import pytest
import torch
from safetensors.torch import save_file

from cryptomnesia.pipelines.tokenizers import Excess, too_long
from cryptomnesia.testing.miniatures import (
    LONGEST,
    WIDTH,
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    tokens,
    unconditional,
)


def red(words):
    return " ".join(["red"] * words)


@pytest.mark.parametrize("made", [stable_diffusion, stable_diffusion_xl, stable_diffusion_3])
def test_clip_reads_as_many_tokens_as_it_has_positions(made):
    pipe = made()
    fits, long = red(LONGEST - 2), red(LONGEST - 1)
    assert too_long(pipe, [fits, long]) == {long: Excess(LONGEST + 1, LONGEST)}


def test_a_prompt_is_as_long_as_the_longest_encoder_reads():
    pipe = flux()
    # T5 is given max_sequence_length tokens, whatever its tokenizer says of itself
    fits, long = red(510), red(511)
    assert too_long(pipe, [red(2 * LONGEST), fits, long]) == {long: Excess(513, 512)}
    assert too_long(pipe, [fits], longest=100) == {fits: Excess(512, 100)}


def test_an_encoder_that_is_left_out_reads_nothing():
    pipe = stable_diffusion_3()
    # the tokenizer of T5 may be there without T5
    pipe.tokenizer_3 = tokens()
    assert too_long(pipe, [red(LONGEST)]) == {red(LONGEST): Excess(LONGEST + 2, LONGEST)}
    pipe.text_encoder_3 = flux().text_encoder_2
    assert too_long(pipe, [red(LONGEST)]) == {}


def test_a_textual_inversion_counts_as_its_vectors(tmp_path):
    pipe = stable_diffusion()
    vectors = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    # all miniatures share one tokenizer, which must not know the new tokens
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    save_file({"<cat-toy>": vectors}, tmp_path / "toy.safetensors")
    pipe.load_textual_inversion(tmp_path / "toy.safetensors", token="<cat-toy>")
    fits, long = f"{red(LONGEST - 6)} <cat-toy>", f"{red(LONGEST - 5)} <cat-toy>"
    assert too_long(pipe, [fits, long]) == {long: Excess(LONGEST + 1, LONGEST)}
    # diffusers cuts the last vector off, without a word
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(long, pipe.tokenizer), truncation=True, max_length=LONGEST).input_ids
    assert ids[-2] == pipe.tokenizer.convert_tokens_to_ids("<cat-toy>_2")


def test_a_model_without_captions_has_no_limit():
    assert too_long(unconditional(), [red(1000)]) == {}
