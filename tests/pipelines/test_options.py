import keyword

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptomnesia import UsageError
from cryptomnesia.pipelines.origins.options import check_values, parse_options
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import flux, stable_diffusion


def test_values_are_json_or_texts():
    texts = ["a=4", "b=0.5", "c=true", "d=null", "e=[1, 2]", "f=a red circle", "g=a=b", "h=", 'i="4"', "j={", "k=NaN"]
    assert parse_options(texts) == {
        "a": 4, "b": 0.5, "c": True, "d": None, "e": [1, 2], "f": "a red circle", "g": "a=b", "h": "", "i": "4",
        "j": "{", "k": "NaN",
    }  # fmt: skip


@settings(max_examples=50)
@given(st.text(), st.text())
def test_any_text_is_a_value(key, value):
    if key.isidentifier() and not keyword.iskeyword(key):
        assert parse_options([f"{key}={value}"]).keys() == {key}
    elif key.strip() == key and "=" not in key:
        with pytest.raises(UsageError, match="give KEY=VALUE"):
            parse_options([f"{key}={value}"])


@pytest.mark.parametrize("text", ["eta", "=1", "e ta=1", "1=2", "for=2", "height=3", "eta=" + "[" * 100_000])
def test_what_is_no_option(text):
    if "[" in text:
        assert parse_options([text]) == {"eta": "[" * 100_000}
        return
    with pytest.raises(UsageError):
        parse_options([text])


def test_values_have_the_types_of_the_call():
    check_values(stable_diffusion(), {"eta": 1, "clip_skip": 2, "timesteps": [3, 2], "latents": torch.zeros(1)})
    for pipe, given_value, message in [
        (stable_diffusion(), {"eta": "much"}, "got eta='much', and a StableDiffusionPipeline expects float; give such"),
        (stable_diffusion(), {"eta": "4"}, "got eta='4', and a StableDiffusionPipeline expects float"),
        (
            stable_diffusion(),
            {"num_inference_steps": 2.5},
            "got num_inference_steps=2.5, and a StableDiffusionPipeline",
        ),
        (stable_diffusion(), {"clip_skip": 1.5}, "got clip_skip=1.5, and a StableDiffusionPipeline expects int | None"),
        (flux(), {"true_cfg_scale": "x"}, "got true_cfg_scale='x', and a FluxPipeline expects float"),
    ]:
        with pytest.raises(UsageError) as refused:
            Setup.of(pipe, given_value)
        assert message in str(refused.value)
