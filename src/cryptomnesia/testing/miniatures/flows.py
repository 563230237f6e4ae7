"""Miniatures of transformers that are trained on rectified flow."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from cryptomnesia.testing.miniatures.parts import WIDTH, text_config, tokens, vae


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """Without its third text encoder, as it may be used."""
    torch.manual_seed(0)
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer=tokens(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer_2=tokens(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux() -> FluxPipeline:
    """Guidance-distilled; its T5 encoder reads the words of the miniatures' tokenizer."""
    torch.manual_seed(0)
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.06),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokens(),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(tokens()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
        ).eval(),
        tokenizer_2=tokens(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
