"""Random miniatures of transformers that are trained on rectified flow, made from configurations alone.

All of them read captions with a small random network of the class that their pipelines use, through the words of the
miniatures' tokenizer.
"""

# diffusers annotates its configurations as tuples of one element and refuses its own None
# pyright: reportArgumentType=false

import copy
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
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
    MistralConfig,
    MistralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from cryptomnesia.testing.miniatures.flows import flux, stable_diffusion_3
from cryptomnesia.testing.miniatures.parts import WIDTH, text_config, tokens, vae

LAYERS = {"text_encoder_out_layers": (0, 1, 2)}
"""Option of Flux.2, whose text encoder has fewer layers here."""


def _language(**more: Any) -> dict[str, Any]:
    """Configuration of a language model with two layers."""
    return {
        "vocab_size": len(tokens()),
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        **more,
    }


def _chatting(template: str) -> Any:
    """The tokenizer with a template of a chat."""
    made = copy.deepcopy(tokens())
    made.chat_template = template
    return made


def _euler(**more: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **more})


def _made(pipe: Any, side: int = 8) -> Any:
    """The pipeline, whose default pictures are small, and which shows no progress."""
    if hasattr(pipe, "default_sample_size"):
        pipe.default_sample_size = side
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_image_to_image() -> FluxImg2ImgPipeline:
    """Flux that changes a picture."""
    return _made(FluxImg2ImgPipeline(**flux().components))


def flux_inpainting() -> FluxInpaintPipeline:
    """Flux that fills a region."""
    return _made(FluxInpaintPipeline(**flux().components))


def flux_kontext() -> FluxKontextPipeline:
    """Flux that edits a picture; the tokens of the picture stand behind the noisy ones."""
    return _made(FluxKontextPipeline(**flux().components))


def sd3_image_to_image() -> StableDiffusion3Img2ImgPipeline:
    """Stable Diffusion 3 that changes a picture."""
    return _made(StableDiffusion3Img2ImgPipeline(**stable_diffusion_3().components))


def sd3_inpainting() -> StableDiffusion3InpaintPipeline:
    """Stable Diffusion 3 that fills a region; its network is given a mask and a picture in further channels."""
    parts = stable_diffusion_3().components
    config = {**parts["transformer"].config, "in_channels": 33, "out_channels": 16}
    parts["transformer"] = SD3Transformer2DModel.from_config(config).eval()
    parts["vae"] = vae(shift_factor=0.06, latent_channels=16)
    return _made(StableDiffusion3InpaintPipeline(**parts))


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image; the template around captions is left out."""
    torch.manual_seed(0)
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=_language(
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
        scheduler=_euler(),
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
    return _made(pipe)


def _flux2_parts(*, distilled: bool) -> dict[str, Any]:
    return {
        "scheduler": _euler(),
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
    """Flux.2, guidance-distilled."""
    torch.manual_seed(0)
    return _made(
        Flux2Pipeline(
            **_flux2_parts(distilled=True),
            text_encoder=MistralForCausalLM(MistralConfig(**_language())).eval(),
            tokenizer=_chatting("{{ messages[-1]['content'][0]['text'] }}"),
        )
    )


def flux2_klein(*, distilled: bool = False) -> Flux2KleinPipeline:
    """Flux.2 klein, by default the model that is not distilled."""
    torch.manual_seed(0)
    return _made(
        Flux2KleinPipeline(
            **_flux2_parts(distilled=False),
            text_encoder=Qwen3ForCausalLM(Qwen3Config(**_language())).eval(),
            tokenizer=_chatting("in {{ messages[0]['content'] }}"),
            is_distilled=distilled,
        )
    )


def z_image() -> ZImagePipeline:
    """Z-Image."""
    torch.manual_seed(0)
    pipe = ZImagePipeline(
        scheduler=_euler(),
        vae=vae(shift_factor=0.06).eval(),
        text_encoder=Qwen3Model(Qwen3Config(**_language())).eval(),
        tokenizer=_chatting("in {{ messages[0]['content'] }}"),
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
    return _made(pipe)


def lumina2() -> Lumina2Pipeline:
    """Lumina 2; the system prompt is left out."""
    torch.manual_seed(0)
    pipe = Lumina2Pipeline(
        scheduler=_euler(),
        vae=vae(shift_factor=0.06).eval(),
        text_encoder=Gemma2Model(Gemma2Config(**_language())).eval(),
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
    return _made(pipe)


def chroma() -> ChromaPipeline:
    """Chroma."""
    torch.manual_seed(0)
    return _made(
        ChromaPipeline(
            scheduler=_euler(),
            vae=vae(shift_factor=0.06).eval(),
            text_encoder=T5EncoderModel(_t5(T5Config)).eval(),
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


def _open(network: torch.nn.Module) -> None:
    """Open the gates of a network; those of a random one let next to nothing of the caption through."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name and name.endswith("linear.weight"):
                weight.mul_(20)


def _t5(kind: Any) -> Any:
    return kind(vocab_size=len(tokens()), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)


def aura_flow() -> AuraFlowPipeline:
    """AuraFlow."""
    torch.manual_seed(0)
    pipe = _made(
        AuraFlowPipeline(
            scheduler=_euler(use_dynamic_shifting=False, shift=1.73),
            vae=vae().eval(),
            text_encoder=UMT5EncoderModel(_t5(UMT5Config)).eval(),
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
    """CogView 4."""
    torch.manual_seed(0)
    return _made(
        CogView4Pipeline(
            scheduler=_euler(base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
            vae=vae(shift_factor=0.06).eval(),
            text_encoder=GlmModel(GlmConfig(**_language())).eval(),
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
    """HiDream."""
    torch.manual_seed(0)
    return _made(
        HiDreamImagePipeline(
            scheduler=_euler(use_dynamic_shifting=False, shift=3.0),
            vae=vae(shift_factor=0.06).eval(),
            text_encoder=CLIPTextModelWithProjection(text_config()).eval(),
            tokenizer=tokens(),
            text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
            tokenizer_2=tokens(),
            text_encoder_3=T5EncoderModel(_t5(T5Config)).eval(),
            tokenizer_3=tokens(),
            text_encoder_4=LlamaForCausalLM(LlamaConfig(**_language(), attn_implementation="eager")).eval(),
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
