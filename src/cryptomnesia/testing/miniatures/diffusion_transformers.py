"""Miniatures of PixArt and SANA, transformers with cross-attention to a caption."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

from cryptomnesia.testing.miniatures.parts import WIDTH, tokens, vae

UNBINNED: dict[str, Any] = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 32}
"""Options of both pipelines, which otherwise refuse the size of a miniature, and clean captions with other packages."""

UNINSTRUCTED: dict[str, Any] = {"height": 32, "width": 32, **UNBINNED, "complex_human_instruction": []}
"""Options of SANA, which puts an instruction of several hundred words before every caption."""


def pixart(kind: type[Any] = PixArtSigmaPipeline) -> PixArtSigmaPipeline | PixArtAlphaPipeline:
    """PixArt-Σ or PixArt-α, with a learned variance."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    encoder = T5Config(vocab_size=len(tokens()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    pipe = kind(
        tokenizer=tokens(),
        text_encoder=T5EncoderModel(encoder).eval(),
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sana() -> SanaPipeline:
    """SANA, with DPM-Solver++ for rectified flow; 32×32 pixels become 8×8 latents."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
    )
    blocks = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    encoder = Gemma2Config(
        vocab_size=len(tokens()),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
    )
    pipe = SanaPipeline(
        tokenizer=tokens(),
        text_encoder=Gemma2Model(encoder).eval(),
        vae=AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.41407,
            **blocks,
        ).eval(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
