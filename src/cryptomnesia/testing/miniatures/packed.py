"""Miniatures of transformers over packed latents, which are trained on rectified flow."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from cryptomnesia.testing.miniatures.flows import flux
from cryptomnesia.testing.miniatures.parts import WIDTH, chatting, euler, language_config, small, t5_config, tokens, vae

LAYERS = {"text_encoder_out_layers": (0, 1, 2)}
"""Option of Flux.2, whose text encoder has fewer layers here."""


def flux_image_to_image() -> FluxImg2ImgPipeline:
    """Flux that changes a picture."""
    return small(FluxImg2ImgPipeline(**flux().components))


def flux_inpainting() -> FluxInpaintPipeline:
    """Flux that fills a region."""
    return small(FluxInpaintPipeline(**flux().components))


def flux_kontext() -> FluxKontextPipeline:
    """Flux that edits a picture; the tokens of the picture stand behind the noisy ones."""
    return small(FluxKontextPipeline(**flux().components))


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image; the template around captions is left out."""
    torch.manual_seed(0)
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=language_config(
                rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
            ),
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
                "fullatt_block_indexes": [0],
            },
        )
    )
    pipe = QwenImagePipeline(
        scheduler=euler(),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1] * 4,
            latents_std=[1.5] * 4,
        ).eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokens(),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    return small(pipe)


def _flux2_parts(*, distilled: bool) -> dict[str, Any]:
    return {
        "scheduler": euler(),
        "vae": AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            layers_per_block=1,
            sample_size=16,
        ).eval(),
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=distilled,
        ).eval(),
    }


def flux2() -> Flux2Pipeline:
    """A random Flux.2, guidance-distilled, with packed latents."""
    torch.manual_seed(0)
    return small(
        Flux2Pipeline(
            **_flux2_parts(distilled=True),
            text_encoder=MistralForCausalLM(MistralConfig(**language_config())).eval(),
            tokenizer=chatting("{{ messages[-1]['content'][0]['text'] }}"),
        )
    )


def flux2_klein(*, distilled: bool = False) -> Flux2KleinPipeline:
    """Flux.2 klein, by default the model that is not distilled."""
    torch.manual_seed(0)
    return small(
        Flux2KleinPipeline(
            **_flux2_parts(distilled=False),
            text_encoder=Qwen3ForCausalLM(Qwen3Config(**language_config())).eval(),
            tokenizer=chatting("in {{ messages[0]['content'] }}"),
            is_distilled=distilled,
        )
    )


def chroma() -> ChromaPipeline:
    """A random Chroma with packed latents and a T5 encoder."""
    torch.manual_seed(0)
    return small(
        ChromaPipeline(
            scheduler=euler(),
            vae=vae(shift_factor=0.06).eval(),
            text_encoder=T5EncoderModel(t5_config(T5Config)).eval(),
            tokenizer=tokens(),
            transformer=ChromaTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 4, 8),
                approximator_num_channels=16,
                approximator_hidden_dim=16,
                approximator_layers=1,
            ).eval(),
        )
    )
