"""The stock SD pipeline around a closed-form denoiser."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict

from cryptomnesia.testing.miniatures.parts import WIDTH, tokens
from cryptomnesia.testing.miniatures.unets import stable_diffusion


class OracleUNet(torch.nn.Module):
    """A closed-form denoiser in the place of a UNet; the condition is the first number of the text embedding."""

    def __init__(self, oracle: Any, channels: int, side: int) -> None:
        """An oracle of latents (B, channels, side, side)."""
        super().__init__()
        self.oracle = oracle
        self.config = FrozenDict(in_channels=channels, sample_size=side, time_cond_proj_dim=None)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x: Any, t: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        """What the oracle predicts, as a tuple of one."""
        which = {"which": encoder_hidden_states[:, 0, 0].round().long()}
        return (self.oracle(x, t, which).value,)


def oracle_pipeline(oracle: Any, channels: int = 1, side: int = 4) -> StableDiffusionPipeline:
    """The stock SD pipeline around an oracle, on SD's own schedule."""
    pipe = stable_diffusion()
    pipe.register_modules(
        unet=OracleUNet(oracle, channels, side),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    )
    return pipe


class KeywordEncoder(torch.nn.Module):
    """A text encoder that tells an `OracleUNet` one thing: condition 1 if a word is in the prompt, else 0."""

    def __init__(self, word: str) -> None:
        """Take one of `WORDS`."""
        super().__init__()
        self.token = tokens().convert_tokens_to_ids(f"{word}</w>")
        self.config = SimpleNamespace()
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, ids: Any, attention_mask: Any = None) -> Any:
        """An embedding of one token per caption, as a tuple of one."""
        embeds = torch.zeros(len(ids), 1, WIDTH)
        embeds[:, 0, 0] = (ids == self.token).any(dim=1).float()
        return (embeds,)


def call_oracle(pipe: Any, which: int, seeds: range, steps: int = 20, guidance: float = 1.01, baseline: int = 0) -> Any:
    """Latents of one generation per seed under condition `which`, guided against condition `baseline`."""
    embeds = torch.full((len(seeds), 1, WIDTH), float(which))
    side = pipe.unet.config.sample_size
    return pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=torch.full_like(embeds, float(baseline)),
        latents=torch.stack(
            [
                torch.randn((pipe.unet.config.in_channels, side, side), generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
        ),
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).images
