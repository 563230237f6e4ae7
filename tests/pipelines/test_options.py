import keyword

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptomnesia import UsageError
from cryptomnesia.pipelines.origins.options import check_values, parse_options
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from guarded_calls import call


def test_values_are_json_or_texts():
    texts = ["a=4", "b=0.5", "c=true", "d=null", "e=[1, 2]", "f=a red circle", "g=a=b", "h=", 'i="4"', "j={", "k=NaN"]
    texts += ["l=1e400", "m=[-1e999]"]
    assert parse_options(texts) == {
        "a": 4, "b": 0.5, "c": True, "d": None, "e": [1, 2], "f": "a red circle", "g": "a=b", "h": "", "i": "4",
        "j": "{", "k": "NaN", "l": "1e400", "m": "[-1e999]",
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
    check_values(stable_diffusion(), {"eta": 1, "timesteps": [3, 2], "latents": torch.zeros(1)})
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


@pytest.mark.parametrize(
    ("make", "skipped", "message"),
    [
        (stable_diffusion, -1, "got clip_skip=-1, and a StableDiffusionPipeline can skip 0 to 2 layers"),
        (stable_diffusion, 3, "got clip_skip=3, and a StableDiffusionPipeline can skip 0 to 2 layers"),
        (stable_diffusion_xl, 2, "got clip_skip=2, and a StableDiffusionXLPipeline can skip 0 to 1 layers"),
        (stable_diffusion_3, -1, "got clip_skip=-1, and a StableDiffusion3Pipeline can skip 0 to 1 layers"),
    ],
)
def test_layers_that_a_text_encoder_does_not_have_cannot_be_skipped(make, skipped, message):
    with pytest.raises(UsageError) as refused:
        check_values(make(), {"clip_skip": skipped})
    assert message in str(refused.value)


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl, stable_diffusion_3])
def test_layers_are_skipped_or_the_number_is_refused_beforehand(make):
    pipe = make()
    # the pipeline of one encoder reads an attribute that newer versions of transformers do not have
    if make is stable_diffusion and not hasattr(pipe.text_encoder, "text_model"):
        with pytest.raises(UsageError, match="got clip_skip=1, which the installed diffusers cannot do"):
            check_values(pipe, {"clip_skip": 1})
    else:
        check_values(pipe, {"clip_skip": 1})
        call(pipe, clip_skip=1)
