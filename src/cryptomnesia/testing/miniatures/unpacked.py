"""Miniatures of transformers over latents that are not packed, which are trained on rectified flow."""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

import copy

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from cryptomnesia.testing.miniatures.flows import stable_diffusion_3
from cryptomnesia.testing.miniatures.parts import (
    WIDTH,
    chatting,
    euler,
    language_config,
    small,
    t5_config,
    text_config,
    tokens,
    vae,
)


def sd3_image_to_image() -> StableDiffusion3Img2ImgPipeline:
    """Stable Diffusion 3 that changes a picture."""
    return small(StableDiffusion3Img2ImgPipeline(**stable_diffusion_3().components))


def sd3_inpainting() -> StableDiffusion3InpaintPipeline:
    """Stable Diffusion 3 that fills a region; its network is given a mask and a picture in further channels."""
    parts = stable_diffusion_3().components
    config = {**parts["transformer"].config, "in_channels": 33, "out_channels": 16}
    parts["transformer"] = SD3Transformer2DModel(**{name: config[name] for name in config if name[0] != "_"}).eval()
    parts["vae"] = vae(shift_factor=0.06, latent_channels=16)
    return small(StableDiffusion3InpaintPipeline(**parts))


def z_image() -> ZImagePipeline:
    """A random Z-Image, whose network takes lists of samples."""
    torch.manual_seed(0)
    pipe = ZImagePipeline(
        scheduler=euler(),
        vae=vae(shift_factor=0.06).eval(),
        text_encoder=Qwen3Model(Qwen3Config(**language_config())).eval(),
        tokenizer=chatting("in {{ messages[0]['content'] }}"),
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 32, 32],
        ).eval(),
    )
    # the tokens that fill sequences up are left out by masks, but a network of zeros would hide it if they were not
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if name.endswith("pad_token"):
                weight.normal_(std=0.02)
    return small(pipe)


def lumina2() -> Lumina2Pipeline:
    """Lumina 2; the system prompt is left out."""
    torch.manual_seed(0)
    pipe = Lumina2Pipeline(
        scheduler=euler(),
        vae=vae(shift_factor=0.06).eval(),
        text_encoder=Gemma2Model(Gemma2Config(**language_config())).eval(),
        tokenizer=copy.deepcopy(tokens()),
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(64, 32, 32),
            cap_feat_dim=WIDTH,
        ).eval(),
    )
    pipe.system_prompt = ""
    return small(pipe)


def _open(network: torch.nn.Module) -> None:
    """Open the gates of a network; those of a random one let next to nothing of the caption through."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name and name.endswith("linear.weight"):
                weight.mul_(20)


def aura_flow() -> AuraFlowPipeline:
    """A random AuraFlow with latents that are not packed."""
    torch.manual_seed(0)
    pipe = small(
        AuraFlowPipeline(
            scheduler=euler(use_dynamic_shifting=False, shift=1.73),
            vae=vae().eval(),
            text_encoder=UMT5EncoderModel(t5_config(UMT5Config)).eval(),
            tokenizer=tokens(),
            transformer=AuraFlowTransformer2DModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=WIDTH,
                caption_projection_dim=32,
                pos_embed_max_size=64,
            ).eval(),
        )
    )
    _open(pipe.transformer)
    return pipe


def cogview4() -> CogView4Pipeline:
    """A small random CogView 4."""
    torch.manual_seed(0)
    return small(
        CogView4Pipeline(
            scheduler=euler(base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
            vae=vae(shift_factor=0.06).eval(),
            text_encoder=GlmModel(GlmConfig(**language_config())).eval(),
            tokenizer=tokens(),
            transformer=CogView4Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                text_embed_dim=WIDTH,
                time_embed_dim=8,
                condition_dim=4,
                sample_size=8,
                pos_embed_max_size=8,
                rope_axes_dim=(8, 8),
            ).eval(),
        )
    )


def hidream() -> HiDreamImagePipeline:
    """A small random HiDream."""
    torch.manual_seed(0)
    return small(
        HiDreamImagePipeline(
            scheduler=euler(use_dynamic_shifting=False, shift=3.0),
            vae=vae(shift_factor=0.06).eval(),
            text_encoder=CLIPTextModelWithProjection(text_config()).eval(),
            tokenizer=tokens(),
            text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
            tokenizer_2=tokens(),
            text_encoder_3=T5EncoderModel(t5_config(T5Config)).eval(),
            tokenizer_3=tokens(),
            text_encoder_4=LlamaForCausalLM(LlamaConfig(**language_config(attn_implementation="eager"))).eval(),
            tokenizer_4=copy.deepcopy(tokens()),
            transformer=HiDreamImageTransformer2DModel(
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_channels=[WIDTH, WIDTH],
                text_emb_dim=2 * WIDTH,
                axes_dims_rope=(4, 2, 2),
                max_resolution=(8, 8),
                llama_layers=[0, 1],
            ).eval(),
        )
    )
