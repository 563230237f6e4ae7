"""Withheld latents decode to what the autoencoder makes of a black picture."""

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMPipeline

from cryptomnesia import UsageError, guard, load_pipeline
from cryptomnesia.guarding.black import black_latents, check_black, returns_latents
from cryptomnesia.testing.miniatures import (
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from guarded_calls import call
from nulls import EVERYTHING, flagging


def decoded(pipe, latents):
    """A picture (3, H, W) in [-1, 1] by the pipeline's own decoder, from latents as the pipeline returns them."""
    config = pipe.vae.config
    latents = latents[None]
    if latents.dim() == 3:
        latents = pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor)
    if config.latents_mean is not None:
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor + (config.shift_factor or 0.0)
    with torch.no_grad():
        return pipe.vae.decode(latents).sample[0]


def with_statistics():
    pipe = stable_diffusion_xl()
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[2.0, 1.0, 0.5, 1.5])
    return pipe


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl, with_statistics, stable_diffusion_3, flux])
def test_they_decode_to_a_black_picture_as_the_autoencoder_has_it(make):
    pipe = make()
    size = {"height": 16, "width": 16} if make is flux else {}
    image = call(pipe, output_type="latent", num_inference_steps=1, **size)[0]
    latents = black_latents(pipe, image, size)
    assert latents.shape == image.shape
    with torch.no_grad():
        black = pipe.vae.encode(-torch.ones(1, 3, 16, 16)).latent_dist.mean
        wanted = pipe.vae.decode(black).sample[0]
    torch.testing.assert_close(decoded(pipe, latents), wanted, rtol=1e-4, atol=1e-4)


def test_the_bundled_model_decodes_them_to_black():
    pipe = load_pipeline("bundled")
    latents = black_latents(pipe, torch.zeros(4, 8, 8), {})
    assert decoded(pipe, latents).mean() < -0.95
    assert decoded(pipe, torch.zeros_like(latents)).mean() > -0.7


def test_a_guard_withholds_latents(pipe, calibration):
    plain = call(pipe, output_type="latent", seeds=(0, 1), prompt=["a red circle"] * 2)
    # the rephrased image is flagged, too, so that the mitigation withholds it
    for settings in ({"policy": "block"}, {"policy": "mitigate"}, {"policy": "block", "decide_by": 2}):
        with guard(pipe, flagging(calibration, EVERYTHING), **settings) as guarding:
            found = call(pipe, output_type="latent", seeds=(0, 1), prompt=["a red circle"] * 2)
        assert [verdict.action for verdict in guarding.verdicts] == ["withheld"] * 2
        for image in found:
            torch.testing.assert_close(image, black_latents(pipe, plain[0], {}))
            assert image.any()


def test_a_pipeline_without_an_autoencoder_returns_pictures():
    pipe = unconditional(DDIMPipeline)
    assert not returns_latents(pipe, {"output_type": "latent"})
    assert not returns_latents(stable_diffusion(), {})
    assert returns_latents(stable_diffusion(), {"output_type": "latent"})


def test_half_precision():
    pipe = stable_diffusion_xl().to(torch.float16)
    latents = black_latents(pipe, torch.zeros(4, 8, 8, dtype=torch.float16), {})
    assert (latents.dtype, pipe.vae.dtype) == (torch.float16, torch.float16)
    full = black_latents(stable_diffusion_xl(), torch.zeros(4, 8, 8), {})
    torch.testing.assert_close(latents.float(), full, rtol=0.01, atol=0.01)


def test_what_cannot_be_black_is_refused(pipe, calibration):
    class Odd(type(pipe.vae)):
        """An autoencoder that scales its latents in a way of its own."""

    with guard(pipe, calibration, policy="block", fpr=0.5) as guarding:
        pipe.vae.__class__ = Odd
        assert call(pipe).shape == (1, 16, 16, 3)
        with pytest.raises(UsageError, match="which latents of the Odd are black; ask for 'pil', 'np' or 'pt'"):
            call(pipe, output_type="latent")
        assert guarding.verdicts == ()
    with guard(pipe, calibration, policy="observe", fpr=0.5):
        assert call(pipe, output_type="latent").shape == (1, 4, 8, 8)
    with pytest.raises(UsageError, match=r"latents of shape \(5, 8, 8\) cannot be made black"):
        black_latents(pipe, torch.zeros(5, 8, 8), {})
    pipe.vae = AutoencoderTiny()
    check_black(pipe)
