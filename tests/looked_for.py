"""A model that holds two known pictures and nothing of any other, and the pictures that are looked for in it."""

from functools import cache
from types import SimpleNamespace

import diffusers
import numpy as np
import torch
from PIL import Image

from cryptomnesia.testing.miniatures import KeywordEncoder, oracle_pipeline
from cryptomnesia.testing.miniatures.parts import vae
from cryptomnesia.testing.oracles import FiniteSet

CALL = {"num_inference_steps": 8, "guidance_scale": 1.01}
"""Arguments of every call."""

CAPTIONED, HELD = 0, 1
"""Seeds of the pictures that the model holds: the first with a caption that names a ring, the second without one."""


def picture(seed):
    """A picture of 16 × 16 pixels in 8 × 8 squares, from which the autoencoder below loses nothing."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((8, 8), Image.Resampling.BICUBIC)
    return coarse.resize((16, 16), Image.Resampling.NEAREST)


def pictures(first, count):
    return [picture(seed) for seed in range(first, first + count)]


class AutoencoderKL(diffusers.AutoencoderKL):
    """An autoencoder whose latents are the colours of a picture at half of its size, and a fourth channel of zeros."""

    def encode(self, x, return_dict=True):
        latents = torch.nn.functional.avg_pool2d(x, 2)
        latents = torch.cat([latents, torch.zeros_like(latents[:, :1])], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents, sample=lambda *_, **__: latents))

    def decode(self, z, return_dict=True, generator=None):
        return (torch.nn.functional.interpolate(z[:, :3], scale_factor=2, mode="nearest"),)


@cache
def autoencoder():
    made = AutoencoderKL.from_config(vae().config)
    made.register_to_config(scaling_factor=1.0)
    return made.eval()


def latents(shown):
    """A picture as latents (1, 4, 8, 8)."""
    values = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return autoencoder().encode(values).latent_dist.mode()


@cache
def holder():
    """A pipeline that makes one picture if a caption names a ring, and else one of 33, of which one is looked for."""
    others = torch.cat([latents(one) for one in (picture(HELD), *pictures(1_000, 32))])
    pipe = oracle_pipeline(FiniteSet((others, latents(picture(CAPTIONED)))), channels=4, side=8)
    pipe.register_modules(vae=autoencoder(), text_encoder=KeywordEncoder("ring"))
    return pipe
