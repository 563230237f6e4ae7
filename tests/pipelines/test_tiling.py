from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from cryptomnesia.pipelines.contents.tiling import tiles
from cryptomnesia.pipelines.fingerprint import differences
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.settings import Sampling
from cryptomnesia.testing.miniatures import stable_diffusion


def tiled(pipe):
    """A pipeline whose autoencoder has tiles of 32 pixels; its pictures have 16 by default."""
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 16
    return pipe


def image_to_image():
    return StableDiffusionImg2ImgPipeline(**stable_diffusion().components, requires_safety_checker=False)


def test_a_picture_within_one_tile_is_not_tiled():
    pipe = tiled(stable_diffusion())
    assert not tiles(pipe, Sampling(steps=2, guidance=2.0))
    assert not tiles(pipe, Sampling(steps=2, guidance=2.0, height=32, width=16))
    assert tiles(pipe, Sampling(steps=2, guidance=2.0, height=16, width=34)) == {"vae"}


def test_a_picture_that_is_given_may_be_of_any_size():
    call = {"num_inference_steps": 2, "guidance_scale": 2.0, "image": Image.new("RGB", (64, 64))}
    plain, changed = (Setup.of(pipe, call).fingerprint for pipe in (image_to_image(), tiled(image_to_image())))
    assert any("use_tiling" in words for words in differences(plain, changed))
