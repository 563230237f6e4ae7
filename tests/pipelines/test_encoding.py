"""Pictures become what the denoiser of a pipeline sees at the end of a run."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline

from cryptomnesia import UsageError
from cryptomnesia.pipelines.encoding import check_encodable, encoded, encoder_of
from cryptomnesia.testing.miniatures import (
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from cryptomnesia.testing.miniatures.pictures import image_to_image, image_to_image_xl

PICTURES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LATENTS = torch.zeros(2, 4, 8, 8)


@pytest.mark.parametrize("make", [image_to_image, image_to_image_xl])
def test_they_are_what_the_pipeline_itself_encodes(make):
    pipe = make()
    # an encoder that is sure of its latents
    pipe.vae.quant_conv.bias.data[4:] = -30
    wanted = pipe.prepare_latents(2 * PICTURES - 1, 0, 2, 1, torch.float32, torch.device("cpu"), noiseless(pipe))
    torch.testing.assert_close(encoded(pipe, PICTURES, LATENTS), wanted, rtol=1e-4, atol=1e-4)


def noiseless(pipe):
    """No generator; the scheduler adds no noise."""
    pipe.scheduler.add_noise = lambda latents, *_: latents


def test_flow_models_shift_their_latents():
    pipe = stable_diffusion_3()
    mean = pipe.vae.encode(2 * PICTURES - 1).latent_dist.mode()
    wanted = (mean - 0.06) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(encoded(pipe, PICTURES, LATENTS), wanted.detach())


def test_packed_latents_are_those_of_the_pipeline():
    pipe = flux()
    found = encoded(pipe, PICTURES, torch.zeros(2, 16, 16))
    unpacked = pipe._unpack_latents(found, 16, 16, pipe.vae_scale_factor)
    wanted = (pipe.vae.encode(2 * PICTURES - 1).latent_dist.mode() - 0.06) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(unpacked, wanted.detach())


@pytest.mark.parametrize("make", [unconditional, lambda: unconditional(DDPMPipeline)])
def test_without_an_autoencoder_they_are_pixels(make):
    small = PICTURES[:, :, :8, :8]
    assert torch.equal(encoded(make(), small, torch.zeros(1, 3, 8, 8)), 2 * small - 1)


def test_number_format_and_device_are_those_of_the_samples():
    assert encoded(stable_diffusion(), PICTURES, LATENTS.bfloat16()).dtype == torch.bfloat16


def test_an_autoencoder_that_overflows_encodes_in_single_precision():
    pipe = stable_diffusion_xl()
    pipe.vae.half()
    assert encoder_of(pipe) is pipe.vae
    pipe.vae.register_to_config(force_upcast=True)
    assert encoder_of(pipe).dtype == torch.float32
    assert pipe.vae.dtype == torch.float16


def test_another_shape_than_the_networks_is_refused():
    message = (
        r"^pictures become latents of shape \(4, 8, 8\), and the network of the StableDiffusionPipeline takes \(4, 6"
    )
    with pytest.raises(UsageError, match=message):
        encoded(stable_diffusion(), PICTURES, torch.zeros(1, 4, 6, 6))


def test_latents_that_are_not_finite_are_an_error():
    pipe = stable_diffusion()
    pipe.vae.quant_conv.bias.data.fill_(torch.nan)
    with pytest.raises(UsageError, match=r"^pictures become latents that are not finite; check the autoencoder's weig"):
        encoded(pipe, PICTURES, LATENTS)


def test_an_autoencoder_that_is_not_known_is_refused():
    check_encodable(stable_diffusion())
    check_encodable(unconditional())
    with pytest.raises(
        UsageError, match=r"^it is not known how a SimpleNamespace encodes pictures for a SimpleNamespace"
    ):
        check_encodable(SimpleNamespace(vae=SimpleNamespace()))
