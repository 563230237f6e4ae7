"""Miniatures of UNet pipelines."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from typing import Any

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from cryptomnesia.testing.miniatures.parts import WIDTH, scheduler, text_config, tokens, unet, vae


def stable_diffusion(prediction: str = "epsilon") -> StableDiffusionPipeline:
    """SD 1 (ε) or SD 2 (v-prediction)."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokens(),
        unet=unet().eval(),
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """With both of its text encoders."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer=tokens(),
        tokenizer_2=tokens(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ).eval(),
        scheduler=scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unconditional(kind: type[Any] = DDIMPipeline) -> Any:
    """A pixel-space model without captions, whose scheduler does not clip."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
    )
    made = {DDIMPipeline: DDIMScheduler, DDPMPipeline: DDPMScheduler}[kind](clip_sample=False)
    pipe = kind(unet=network.eval(), scheduler=made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILIES = {
    "sd-epsilon": stable_diffusion,
    "sd-v": lambda: stable_diffusion("v_prediction"),
    "sdxl": stable_diffusion_xl,
}
"""UNet pipelines with batched guidance."""
