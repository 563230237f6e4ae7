"""Withheld latents decode to what the autoencoder makes of a black picture."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    DDIMPipeline,
    Flux2Pipeline,
    QwenImagePipeline,
)

from cryptomnesia import UsageError, calibrate, guard, load_pipeline
from cryptomnesia.guarding.black import black_latents, check_black, returns_latents
from cryptomnesia.testing.miniatures import (
    CALL,
    PROMPTS,
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


def around(vae, pipeline=None):
    """What is needed of a pipeline with this autoencoder, of 16×16 pixels to 8×8 latents."""
    return SimpleNamespace(
        vae=vae.eval(),
        vae_scale_factor=2,
        default_sample_size=8,
        _execution_device=torch.device("cpu"),
        maybe_free_model_hooks=lambda: None,
        _pack_latents=getattr(pipeline, "_pack_latents", None),
    )


BLACK = -torch.ones(1, 3, 16, 16)
TOKENS = torch.zeros(16, 16)
"""The shape of 4 channels of 8×8 latents, packed in patches of 2×2."""


@torch.no_grad()
def test_flux_2_normalizes_patches():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKLFlux2(
        **blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    mean, variance = (each.view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
    places = Flux2Pipeline._prepare_latent_ids(torch.zeros(1, 16, 4, 4))
    packed = black_latents(around(vae, Flux2Pipeline), TOKENS, {})[None]
    patches = Flux2Pipeline._unpack_latents_with_ids(packed, places)
    found = Flux2Pipeline._unpatchify_latents(patches * (variance + vae.config.batch_norm_eps).sqrt() + mean)
    torch.testing.assert_close(found, vae.encode(BLACK).latent_dist.mode())


@torch.no_grad()
def test_qwen_image_has_the_autoencoder_of_a_video_model():
    statistics = {"latents_mean": [0.1, 0.2, -0.3, 0.0], "latents_std": [2.0, 1.0, 0.5, 1.5]}
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], **statistics
    )
    mean, std = (torch.tensor(each).view(1, 4, 1, 1, 1) for each in statistics.values())
    packed = black_latents(around(vae, QwenImagePipeline), TOKENS, {})[None]
    found = QwenImagePipeline._unpack_latents(packed, 16, 16, 2) * std + mean
    torch.testing.assert_close(found, vae.encode(BLACK[:, :, None]).latent_dist.mode())


@torch.no_grad()
def test_deep_compression_has_no_distribution():
    parts, usual = ("encoder", "decoder"), {"attention_head_dim": 8, "latent_channels": 4, "scaling_factor": 0.4}
    sizes = {f"{part}_block_out_channels": (8, 8) for part in parts} | {
        f"{part}_layers_per_block": (1, 1) for part in parts
    }
    kinds = {f"{part}_block_types": "ResBlock" for part in parts} | {
        f"{part}_qkv_multiscales": ((), ()) for part in parts
    }
    vae = AutoencoderDC(**usual, **sizes, **kinds)
    found = black_latents(around(vae), torch.zeros(4, 8, 8), {}) / 0.4
    torch.testing.assert_close(found, vae.encode(BLACK).latent[0])


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


def test_what_cannot_be_black_is_refused(pipe):
    class Odd(type(pipe.vae)):
        """An autoencoder that scales its latents in a way of its own."""

    pipe.vae.__class__ = Odd
    odd = calibrate(pipe, PROMPTS, batch_size=51, **CALL)
    with guard(pipe, odd, policy="block", fpr=0.5) as guarding:
        assert call(pipe).shape == (1, 16, 16, 3)
        with pytest.raises(UsageError, match="which latents of the Odd are black; ask for 'pil', 'np' or 'pt'"):
            call(pipe, output_type="latent")
        assert guarding.verdicts == ()
    with guard(pipe, odd, policy="observe", fpr=0.5):
        assert call(pipe, output_type="latent").shape == (1, 4, 8, 8)
    with pytest.raises(UsageError, match=r"latents of shape \(5, 8, 8\) cannot be made black"):
        black_latents(pipe, torch.zeros(5, 8, 8), {})
    pipe.vae = AutoencoderTiny()
    check_black(pipe)
